"""The table that ends a build: a real one where it fits the terminal, else a block of lines per region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .rows import Row, describe_hazard, describe_rewrite, elsewhere, rows, total_lines

if TYPE_CHECKING:
    from ..build import Package


def package_table(package: Package, width: int) -> RenderableType:
    """All regions of a package, with a line above that sums it up."""
    found = rows(package)
    classes = len(package.plan.order)
    title = Text.assemble(
        (package.model, "bold"),
        f"  {_count(len(found), 'region')}, {_count(classes, 'class', 'classes')}, {total_lines(package)} lines",
    )
    if not found:
        text = Text(
            "no region of its own: its parts are models, and compiled where their packages are built", style="dim"
        )
        return Group(title, "", text, "", *_notes(package))
    table = _wide(found)
    # A table whose cells are folded in the middle of a name is harder to read than a list.
    ample = Console(width=1000)
    fits = Measurement.get(ample, ample.options, table).maximum <= width
    return Group(title, "", table if fits else _narrow(found), "", *_notes(package))


def _wide(found: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold")
    for header in (
        "region\nclass",
        "role\ngranularity",
        "dynamic\ndimensions",
        "hoisted calls",
        "rewrites",
        "unresolved\nhazards",
    ):
        table.add_column(header, no_wrap=True)
    table.add_column("lines", justify="right", no_wrap=True)
    for row in found:
        table.add_row(
            Text.assemble((row.tag, "bold cyan"), "\n", row.cls),
            f"{row.role}\n{row.granularity}",
            _stack(row.dynamic),
            _stack(row.hoisted),
            _stack(row.rules),
            _stack([hazard.replace(" ", "\n") for hazard in row.hazards], style="yellow"),
            str(row.lines),
        )
        if row is not found[-1]:
            table.add_row()
    return table


def _narrow(found: Sequence[Row]) -> RenderableType:
    blocks: list[RenderableType] = []
    for row in found:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row("class", row.cls)
        grid.add_row("role", row.role)
        grid.add_row("granularity", row.granularity)
        grid.add_row("dynamic dimensions", _inline(row.dynamic))
        grid.add_row("hoisted calls", _inline(row.hoisted))
        grid.add_row("rewrites", _inline(row.rewrites))
        grid.add_row("unresolved hazards", _inline(row.hazards, style="yellow"))
        grid.add_row("lines", str(row.lines))
        gap = [""] if blocks else []
        blocks += [*gap, Padding(Text(row.tag, style="bold cyan"), (0, 0, 0, 2)), Padding(grid, (0, 0, 0, 4))]
    return Group(*blocks)


def _notes(package: Package) -> list[Text]:
    rewrites, hazards = elsewhere(package)
    notes = []
    if rewrites:
        notes.append(Text(f"rewrites outside the regions: {', '.join(map(describe_rewrite, rewrites))}"))
    if hazards:
        names = ", ".join(map(describe_hazard, hazards))
        notes.append(Text(f"unresolved hazards outside the regions: {names}", style="yellow"))
    notes += [Text(f"{span}: {note}", style="yellow") for span, note in package.facts.notes]
    return notes


def _stack(items: Sequence[str], style: str = "") -> Text:
    """One to a line; a dash stands for none, so that an empty cell isn't taken for a fault."""
    return Text("\n".join(items), style=style) if items else Text("-", style="dim")


def _inline(items: Sequence[str], style: str = "") -> Text:
    return Text(", ".join(items), style=style) if items else Text("-", style="dim")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
