"""What changed in one model between two releases, said in the words of facts and plan. Pure: nothing is read here."""

from __future__ import annotations

from ..facts import ModelFacts
from ..plan import Plan
from .change import Change, Effect, Kind
from .facts import fact_changes
from .identity import Identity
from .plan import plan_changes

__all__ = ["Change", "Effect", "Kind", "changes"]


def changes(old: tuple[ModelFacts, Plan], new: tuple[ModelFacts, Plan]) -> tuple[Change, ...]:
    """Every difference that matters between two builds of one model, by kind; lines that only moved don't count."""
    identity = Identity.of(old[0], new[0])
    found = (*fact_changes(old, new, identity), *plan_changes(old, new, identity))
    order = list(Kind)
    return tuple(sorted(dict.fromkeys(found), key=lambda change: order.index(change.kind)))
