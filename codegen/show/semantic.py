"""`vgen diff --from --to`: what changed in each model's facts and plan, then in its text, and totals at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from ..compare import unified_diff
from ..facts import Span
from ..semantic import Change, Effect, Kind
from ..upgrade import Upgrade
from .console import console
from .data import dumps
from .drift import print_diff

SIGNS = {
    Effect.CAME: ("+", "green"),
    Effect.WENT: ("-", "red"),
    Effect.CHANGED: ("~", "yellow"),
    Effect.MOVED: (">", "cyan"),
    Effect.RENAMED: (">", "cyan"),
    Effect.RESOLVED: ("+", "green"),
    Effect.UNRESOLVED: ("!", "red"),
}


def print_upgrades(upgrades: Sequence[Upgrade], versions: tuple[str, str], *, models: int, text: bool) -> None:
    """Each model that changed, and totals: how many did, and in what."""
    terminal = console()
    for upgrade in upgrades:
        _print(terminal, upgrade, text=text)
    summary = f"{versions[0]} → {versions[1]}: {len(upgrades)} of {models} models changed"
    terminal.print(Text(summary, style="bold"), soft_wrap=True)
    for words, count in totals(upgrades).items():
        terminal.print(Text(f"  {count:>5}  {words}"), soft_wrap=True)


def upgrades_json(upgrades: Sequence[Upgrade], versions: tuple[str, str], *, models: int, text: bool) -> str:
    """The same for machines; a model has no `diff` where the text isn't wanted."""
    found = []
    for upgrade in upgrades:
        entry: dict[str, object] = {"model": upgrade.model, "changes": upgrade.changes}
        if text:
            lines = (line for drift in upgrade.drifts for line in unified_diff(drift, label=upgrade.model))
            entry["diff"] = "".join(f"{line}\n" for line in lines)
        found.append(entry)
    return dumps(
        {"from": versions[0], "to": versions[1], "compared": models, "models": found, "totals": totals(upgrades)}
    )


def totals(upgrades: Iterable[Upgrade]) -> dict[str, int]:
    """Kind and effect of the changes → how many, in the order of the kinds; then the models whose text alone differs."""
    found: Counter[tuple[Kind, Effect]] = Counter()
    text_only = 0
    for upgrade in upgrades:
        found.update((change.kind, change.effect) for change in upgrade.changes)
        text_only += not upgrade.changes
    counted = {f"{kind} {effect}": found[kind, effect] for kind in Kind for effect in Effect if found[kind, effect]}
    return counted | ({"text alone": text_only} if text_only else {})


def _print(terminal: Console, upgrade: Upgrade, *, text: bool) -> None:
    terminal.print(Text(upgrade.model, style="bold"))
    for change in upgrade.changes:
        terminal.print(_line(change), soft_wrap=True)
    if not upgrade.changes:
        terminal.print(Text("  facts and plan are the same; the generated text differs", style="dim"))
    if text and upgrade.drifts:
        terminal.print()
        print_diff(terminal, upgrade.model, upgrade.drifts)
    terminal.print()


def _line(change: Change) -> Text:
    sign, style = SIGNS[change.effect]
    words = f"{change.kind.value} {change.effect.value}"
    return Text.assemble("  ", (f"{sign} {words}: ", style), change.subject, _sides(change), (_place(change), "dim"))


def _sides(change: Change) -> str:
    """`: before → after`, or the one side there is."""
    if change.before is not None and change.after is not None:
        return f": {change.before} → {change.after}" if change.effect is not Effect.RENAMED else f" → {change.after}"
    text = change.before or change.after
    return f": {text}" if text else ""


def _place(change: Change) -> str:
    spans: tuple[Span | None, ...] = (change.new, change.old)
    span = next((span for span in spans if span is not None), None)
    side = " before" if change.new is None and change.old is not None else ""
    return f"  {span}{side}" if span is not None else ""
