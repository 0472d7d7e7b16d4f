"""The modules inside a module, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable

from .facts import ModelFacts, Ref
from .files import COPY


def reached(facts: ModelFacts, root: Ref) -> tuple[Ref, ...]:
    """The class and those of the modules inside it, the nearest first."""
    found: dict[Ref, None] = {}
    pending = [root]
    while pending:
        ref = pending.pop(0)
        fact = facts.find(ref)
        if ref in found or fact is None:
            continue
        found[ref] = None
        pending += [child.target for child in fact.children if child.target is not None]
    return tuple(found)


def through(facts: ModelFacts, root: Ref, attributes: Iterable[str]) -> frozenset[Ref]:
    """The classes that some of the attributes of a class lead to."""
    wanted = frozenset(attributes)
    targets = {child.target for child in facts.of(root).children if child.attribute in wanted and child.target}
    return frozenset(ref for target in targets for ref in reached(facts, target))


def below(facts: ModelFacts, root: Ref, attributes: Iterable[str]) -> frozenset[Ref]:
    """Those of them that none of the other attributes leads to."""
    wanted = frozenset(attributes)
    others = {child.attribute for child in facts.of(root).children} - wanted
    return through(facts, root, wanted) - through(facts, root, others) - {root}


def package_of(facts: ModelFacts, ref: Ref) -> str:
    """The folder of the model that a class belongs to."""
    return facts.model if ref.file.startswith(f"{COPY}/") else ref.file.rsplit("/", 2)[-2]
