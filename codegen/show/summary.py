"""What `vgen build` ends with: the tables, what was written, and the line to import it by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..output import Usage, default_folder, usage
from ..publish import Published
from .console import console, show
from .data import dumps
from .rows import rows, total_lines
from .table import package_table

if TYPE_CHECKING:
    from ..build import Package


class Step(Protocol):
    """Told which model is next."""

    def __call__(self, model: str) -> None: ...


def print_build(packages: Sequence[Package], reports: Sequence[Published], out: Path) -> None:
    """For people."""
    terminal = console()
    by_folder = {report.folder: report for report in reports}
    for package in packages:
        show(package_table(package, terminal.width))
        _print_report(terminal, by_folder.pop(out / package.model))
        _print_packages(terminal, package, out)
        terminal.print()
    for report in by_folder.values():
        _print_report(terminal, report)
        terminal.print()
    _print_usages(terminal, [usage(package, out) for package in packages])


def build_json(packages: Sequence[Package], reports: Sequence[Published], out: Path) -> str:
    """The same for machines."""
    by_folder = {report.folder: report for report in reports}
    found = [package_data(package, by_folder.pop(out / package.model), out) for package in packages]
    return dumps({"packages": found, "runtime": [report_data(report) for report in by_folder.values()]})


def package_data(package: Package, report: Published, out: Path) -> dict[str, object]:
    """One package, and what became of it on disk."""
    using = usage(package, out)
    return {
        "model": package.model,
        "import": using.import_line,
        "load": using.load_line,
        "condition": using.condition,
        "regions": rows(package),
        "lines": total_lines(package),
        "uses": package.plan.packages,
        **report_data(report),
    }


def report_data(report: Published) -> dict[str, object]:
    """What became of one folder."""
    return {
        "folder": report.folder,
        "written": report.written,
        "unchanged": report.unchanged,
        "removed": report.removed,
        "kept": report.kept,
    }


def _print_report(terminal: Console, report: Published) -> None:
    terminal.print(Text(_short(report.folder), style="bold"), soft_wrap=True)
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for words, names, style in (
        ("written", report.written, "green"),
        ("unchanged", report.unchanged, "dim"),
        ("removed", report.removed, "red"),
        ("left alone, not vgen's", report.kept, "yellow"),
    ):
        if names:
            grid.add_row(Text(words, style=style), Text(", ".join(names)))
    show(Padding(grid, (0, 0, 0, 2)))


def _print_packages(terminal: Console, package: Package, out: Path) -> None:
    folders = (out,) if package.runtime_files else (out, default_folder())
    missing = [
        name
        for name in package.plan.packages
        if not any((folder / name / "__init__.py").is_file() for folder in folders)
    ]
    if missing:
        text = f"  not built yet, so upstream's is used: {', '.join(missing)} (`vgen build {' '.join(missing)}`)"
        terminal.print(Text(text, style="yellow"))


def _print_usages(terminal: Console, usages: Sequence[Usage]) -> None:
    """The lines that import what was built; what is the same for all of it once."""
    for using in usages:
        terminal.print(Text.assemble(("use it  ", "bold"), using.import_line), soft_wrap=True)
    for line in dict.fromkeys(using.load_line for using in usages if using.load_line):
        module = line.rpartition(".load(")[0]
        terminal.print(Text(f"    or  import {module}; {line}"), soft_wrap=True)
    for condition in dict.fromkeys(using.condition for using in usages if using.condition):
        terminal.print(Text(f"        with {condition}", style="yellow"), soft_wrap=True)


def _short(folder: Path) -> str:
    """Relative to the working directory where it lies below."""
    path = os.path.relpath(folder, Path.cwd())
    return str(folder) if path.startswith(os.pardir) else path


@contextmanager
def progress(total: int) -> Iterator[Step]:
    """A bar on standard error that names the model at work; it goes when the work is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        begun = 0

        def step(model: str) -> None:
            nonlocal begun
            bar.update(task, description=model, completed=begun)
            begun += 1

        yield step
