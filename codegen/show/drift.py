"""`vgen diff` and `vgen check`: what a build would change, as a coloured diff or one line per file."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ..compare import Drift, DriftKind, unified_diff


def print_diff(console: Console, label: str, drifts: Sequence[Drift]) -> None:
    """Unified diffs, one after the other; long lines aren't wrapped, so that `patch` can read them."""
    for drift in drifts:
        for line in unified_diff(drift, label=label):
            console.print(Text(line, style=_line_style(line)), soft_wrap=True)


def print_check(console: Console, label: str, drifts: Sequence[Drift], reasons: Sequence[str], note: str = "") -> None:
    """The state of a package, then its files, then why they changed."""
    if not drifts:
        console.print(Text.assemble((f"{label}: ", "bold"), ("same", "green"), (note, "dim")), soft_wrap=True)
        return
    console.print(Text.assemble((f"{label}: ", "bold"), ("drift", "yellow")))
    for drift in drifts:
        line = Text.assemble("  ", (f"{drift.kind.value:<8}", _kind_style(drift.kind)), drift.path)
        console.print(line, soft_wrap=True)
    for reason in reasons:
        console.print(Text(f"  {reason}"), soft_wrap=True)


def _line_style(line: str) -> str:
    match line[:1]:
        case _ if line.startswith(("--- ", "+++ ")):
            return "bold"
        case "+":
            return "green"
        case "-":
            return "red"
        case "@":
            return "cyan"
        case _:
            return ""


def _kind_style(kind: DriftKind) -> str:
    match kind:
        case DriftKind.CHANGED:
            return "yellow"
        case DriftKind.MISSING:
            return "red"
        case DriftKind.EXTRA:
            return "magenta"
