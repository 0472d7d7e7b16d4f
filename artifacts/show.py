"""Prints what was compiled and what a store holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import msgspec

from .command import Compiled, Entry
from .task import Case


def print_compiled(compiled: Compiled) -> None:
    """Sizes, seconds and what the fresh process found."""
    click.echo(f"{compiled.label}: {_count(len(compiled.entries), 'artifact')} in {compiled.folder}\n")
    print_entries(compiled.entries)
    click.echo("\nin a fresh process:")
    for case in compiled.verified or compiled.built:
        print_case(case)
    for case in compiled.built:
        if case.problem:
            click.echo(f"  {case.name}, building: {case.problem}")


def print_case(case: Case) -> None:
    """One line: served or not, how fast, how exact."""
    if case.problem:
        click.echo(f"  {case.name}: {case.problem}")
        return
    regions = ", ".join(f"{tag} {count}×" for tag, count in sorted(case.regions.items()))
    apart = "" if case.difference is None else f", within {case.difference:.1g} of eager"
    click.echo(f"  {case.name}: {regions or 'no region ran'} from artifacts, first call {case.seconds} s{apart}")


def print_entries(entries: Iterable[Entry]) -> None:
    """One line each."""
    for each in entries:
        took = f", compiled in {each.header['seconds']} s" if each.header else ""
        state = f": {each.problem}" if each.problem else ": of other versions" if each.is_stale else ""
        click.echo(f"  {each.path.name}  {_size(each.size)}{took}{state}")


def print_pruned(found: Sequence[tuple[Path, str]], *, is_dry: bool) -> None:
    """Each file and why."""
    for path, reason in found:
        click.echo(f"{path}: {'would be ' if is_dry else ''}removed, because {reason}")
    if not found:
        click.echo("nothing to remove")


def as_json(entries: Iterable[Entry]) -> str:
    """The store for machines."""
    found = [
        {"path": str(e.path), "size": e.size, "header": dict(e.header), "problem": e.problem, "stale": e.is_stale}
        for e in entries
    ]
    return msgspec.json.format(msgspec.json.encode(found)).decode() + "\n"


def compiled_json(compiled: Compiled) -> str:
    """What was compiled for machines."""
    found = {
        "model": compiled.label,
        "folder": str(compiled.folder),
        "artifacts": [{"path": str(e.path), "size": e.size, "seconds": e.header["seconds"]} for e in compiled.entries],
        "built": compiled.built,
        "verified": compiled.verified,
    }
    return msgspec.json.format(msgspec.json.encode(found)).decode() + "\n"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _count(number: int, one: str) -> str:
    return f"{number} {one if number == 1 else one + 's'}"
