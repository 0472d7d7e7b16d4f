"""When a region that is one graph runs by its layers instead: where its forward chooses between them at random.

The choice is then made by upstream's own forward outside of any graph, and each layer is a graph of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from .facts import Child, ChildKind, ClassFact, ModelFacts, Ref, Span

_FIXED = (ChildKind.DIRECT, ChildKind.FROM_CONFIG, ChildKind.CHOSEN)
"""How a child is made whose class is sure to be among those that the source names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByLayer:
    """When, and by which layers.

    `condition` is source text in the words of the region's forward: `self.training and self.encoder.layerdrop > 0.0`. `places`
    are the branches that choose, by the class in whose forward they stand.
    """

    condition: str
    layers: tuple[Ref, ...]
    places: tuple[tuple[Ref, Span], ...]


def by_layer(facts: ModelFacts, root: Ref) -> ByLayer | None:
    """What the modules below a class say, itself included; None where none of them leaves out layers."""
    conditions: dict[str, None] = {}
    layers: dict[Ref, None] = {}
    places: list[tuple[Ref, Span]] = []
    pending, seen = [(root, "self")], {root}
    while pending:
        ref, way = pending.pop(0)
        fact = facts.of(ref)
        choice = fact.forward.choice if fact.forward is not None else None
        called = _layers(facts, fact, choice.lists) if choice is not None else ()
        if choice is not None and called:
            conditions[" and ".join(re.sub(r"\bself\b", way, each) for each in choice.conditions)] = None
            layers.update(dict.fromkeys(called))
            places += [(ref, span) for span in choice.spans]
        for child in _sure(fact):
            below = facts.find(child.target)
            if below is not None and below.ref not in seen:
                seen.add(below.ref)
                pending.append((below.ref, f"{way}.{child.attribute}"))
    if not conditions:
        return None
    condition = next(iter(conditions)) if len(conditions) == 1 else " or ".join(f"({each})" for each in conditions)
    return ByLayer(condition=condition, layers=tuple(layers), places=tuple(places))


def _layers(facts: ModelFacts, fact: ClassFact, lists: tuple[str, ...]) -> tuple[Ref, ...]:
    """The classes of the modules in these lists that have a forward of their own.

    What is appended to a list in a loop has no attribute's name: where no other child has it, these are meant.
    """
    repeated = [child for child in fact.children if child.repeated]
    named = [child for child in repeated if child.attribute in lists]
    held = [facts.find(child.target) for child in named or repeated if child in named or not child.attribute]
    return tuple(each.ref for each in held if each is not None and each.forward is not None)


def _sure(fact: ClassFact) -> tuple[Child, ...]:
    """The children that every instance has: those without a condition, and all of those of which it has one."""
    single = [child for child in fact.children if child.attribute and not child.repeated and child.kind in _FIXED]
    alike = Counter(child.attribute for child in single)
    return tuple(child for child in single if not child.conditional or alike[child.attribute] > 1)
