"""Rich consoles: colours only on a terminal, widths from the terminal or from COLUMNS."""

from __future__ import annotations

import shutil
import sys

from rich.console import Console, RenderableType

FALLBACK_COLUMNS = 100


def columns() -> int:
    """The width to write for; never so narrow that nothing fits."""
    return max(40, shutil.get_terminal_size((FALLBACK_COLUMNS, 24)).columns)


def console() -> Console:
    """Standard output. Nothing is highlighted or read as markup: what is shown is source."""
    return Console(file=sys.stdout, width=columns(), highlight=False, markup=False, emoji=False)


def show(renderable: RenderableType) -> None:
    """Print without the blanks that Rich fills lines with: they only get in the way of `grep` and `diff`."""
    terminal = console()
    with terminal.capture() as captured:
        terminal.print(renderable)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
