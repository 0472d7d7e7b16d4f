"""What `vgen build --all` ends with: counts, and every model that wasn't built; `--json` has each package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..package import NO_REGION, Failure, Package
from ..plan import Granularity
from ..publish import Published
from ..sweep import Result, Written
from .console import show
from .data import dumps
from .rows import total_lines
from .summary import package_data, report_data


class Totals:
    """Counts what becomes of each model as it becomes known: no package is kept."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.counts: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self.regions: Counter[tuple[str, str]] = Counter()
        self.rewrites: Counter[str] = Counter()

    def watch(self, results: Iterable[Result]) -> Iterator[Result]:
        """The same results, counted as they pass."""
        for result in results:
            match result:
                case Failure():
                    self.failures.append(result)
                case Written():
                    self._package(result.package)
                    self._report(result.report)
                case Published():
                    self._report(result)
            yield result

    def _package(self, package: Package) -> None:
        plan = package.plan
        self.counts.update(packages=1, classes=len(plan.order), lines=total_lines(package), regions=len(plan.regions))
        self.regions.update((region.role.value, region.granularity.value) for region in plan.regions)
        self.rewrites.update({rewrite.rule for rewrite in plan.rewrites})
        self.counts["hoisted"] += any(region.hoisted for region in plan.regions)
        self.counts["hazards"] += len({(hazard.span, hazard.message) for hazard in plan.unresolved})
        self.counts["hazardous"] += bool(plan.unresolved)

    def _report(self, report: Published) -> None:
        for words in ("written", "unchanged", "removed", "kept"):
            self.files[words] += len(getattr(report, words))


def print_sweep(totals: Totals, out: Path) -> None:
    """For people."""
    counts = totals.counts
    title = Text.assemble(
        (f"{counts['packages']:,} packages", "bold"),
        f"  {counts['regions']:,} regions, {counts['classes']:,} classes, {counts['lines']:,} lines",
    )
    parts: list[RenderableType] = [title, "", Padding(_regions(totals), (0, 0, 0, 2)), "", _notes(totals), ""]
    parts += [Text(str(out), style="bold"), Padding(_files(totals), (0, 0, 0, 2))]
    if totals.failures:
        parts += ["", Text(f"Not built ({len(totals.failures)})", style="bold"), _failures(totals.failures)]
    show(Group(*parts))


def sweep_json(results: Iterable[Result], out: Path) -> str:
    """For machines: as `vgen build --json`, and the failures."""
    found: dict[str, list[object]] = {"packages": [], "failures": [], "runtime": []}
    for result in results:
        match result:
            case Failure():
                found["failures"].append(result)
            case Written():
                found["packages"].append(package_data(result.package, result.report, out))
            case Published():
                found["runtime"].append(report_data(result))
    return dumps(found)


def _regions(totals: Totals) -> Table:
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(no_wrap=True)
    kinds = [kind.value for kind in (Granularity.WHOLE, Granularity.BLOCK)]
    for _ in kinds:
        grid.add_column(no_wrap=True, justify="right")
    grid.add_row(Text("regions", style="bold"), *(Text(kind, style="bold") for kind in kinds))
    for role in sorted({role for role, _ in totals.regions}):
        numbers = [totals.regions[role, kind] for kind in kinds]
        # A role that the config decides is called as in the other tables.
        grid.add_row(role, *(f"{number:,}" if number else "·" for number in numbers))
    return grid


def _notes(totals: Totals) -> RenderableType:
    counts = totals.counts
    lines = [f"calls hoisted in {counts['hoisted']:,} packages"] if counts["hoisted"] else []
    lines += [f"{rule} rewritten in {number:,} packages" for rule, number in sorted(totals.rewrites.items())]
    if counts["hazards"]:
        lines.append(
            f"{counts['hazards']:,} unresolved hazards in {counts['hazardous']:,} packages: see `vgen explain`"
        )
    return Padding(Text("\n".join(lines)), (0, 0, 0, 2))


def _files(totals: Totals) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    styles = {"written": "green", "unchanged": "dim", "removed": "red", "kept": "yellow"}
    names = {"kept": "left alone, not vgen's"}
    for words, style in styles.items():
        if totals.files[words]:
            grid.add_row(Text(names.get(words, words), style=style), Text(f"{totals.files[words]:,} files"))
    return grid


def _failures(failures: Iterable[Failure]) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for failure in failures:
        # The place says which file it is; and there is nothing to do about a model that has nothing to compile.
        reason = failure.reason.removeprefix(f"{failure.span.file} ")
        hint = f" {failure.hint}" if failure.hint and failure.code != NO_REGION else ""
        grid.add_row(Text(failure.model, style="bold"), Text(f"{failure.span}: {reason}{hint}"))
    return Padding(grid, (0, 0, 0, 2))
