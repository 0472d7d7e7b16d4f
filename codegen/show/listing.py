"""`vgen list`: what is built, with its state, and then all that can be, by first letter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..output import Built


def state(package: Built, version: str) -> str:
    """One of `current`, `stale` (made from another Transformers), `broken`."""
    if package.lock is None:
        return "broken"
    return "current" if package.lock.transformers == version else "stale"


def listing(packages: Sequence[Built], models: Sequence[str], version: str) -> RenderableType:
    """Built ones first, then the rest."""
    names = {package.model for package in packages}
    rest = [model for model in models if model not in names]
    parts: list[RenderableType] = []
    if packages:
        parts += [Text(f"Built ({len(packages)})", style="bold"), Padding(_built(packages, version), (0, 0, 0, 2)), ""]
    parts += [
        Text(f"Can be built from Transformers {version} ({len(rest)})", style="bold"),
        Padding(_by_letter(rest), (0, 0, 0, 2)),
    ]
    return Group(*parts)


def _by_letter(names: Sequence[str]) -> Table:
    """One paragraph to a first letter: a few long names would make equal columns few, and the list endless."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    for letter, group in itertools.groupby(names, key=lambda name: name[0]):
        grid.add_row(letter, Text("  ".join(group)))
    return grid


def data(packages: Sequence[Built], models: Sequence[str], version: str) -> dict[str, object]:
    """The same for machines."""
    found = [
        {"model": package.model, "state": state(package, version), "problem": package.problem, "lock": _lock(package)}
        for package in packages
    ]
    return {"transformers": version, "built": found, "models": models}


def _lock(package: Built) -> dict[str, object] | None:
    lock = package.lock
    if lock is None:
        return None
    return {
        "transformers": lock.transformers,
        "vgen": lock.vgen,
        "granularity": lock.granularity,
        "standalone": lock.standalone,
    }


def _built(packages: Sequence[Built], version: str) -> Table:
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for package in packages:
        grid.add_row(Text(package.model, style="bold cyan"), _describe(package, version))
    return grid


def _describe(package: Built, version: str) -> Text:
    lock = package.lock
    if lock is None:
        return Text(package.problem or "broken lock", style="red")
    detail = f"{lock.granularity}{', standalone' if lock.standalone else ''}"
    if lock.transformers == version:
        return Text(f"from Transformers {version}, {detail}")
    return Text(
        f"from Transformers {lock.transformers}, here is {version}: see `vgen check {package.model}` ({detail})",
        style="yellow",
    )
