"""Which class of the old release is which of the new one: the same, moved to another file, or renamed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from ..facts import ClassFact, ModelFacts, Ref

ALIKE = 0.6
"""How alike two names must be, besides what the classes are made of, for one to be the other renamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """`pairs` leads from each class of the old facts to the class of the new facts that it is now."""

    pairs: Mapping[Ref, Ref]

    @staticmethod
    def of(old: ModelFacts, new: ModelFacts) -> Identity:
        before, after = {fact.ref: fact for fact in old.classes}, {fact.ref: fact for fact in new.classes}
        pairs = {ref: ref for ref in before if ref in after}
        pairs |= _moved(set(before) - set(after), set(after) - set(before))
        gone = [fact for ref, fact in before.items() if ref not in pairs]
        here = [fact for ref, fact in after.items() if ref not in pairs.values()]
        return Identity(pairs=pairs | _renamed(gone, here))

    def now(self, ref: Ref) -> Ref:
        """The class as it is known in the new release; one that is gone keeps its old name."""
        return self.pairs.get(ref, ref)

    def name(self, ref: Ref | None) -> str | None:
        return self.now(ref).name if ref is not None else None


def _moved(gone: set[Ref], here: set[Ref]) -> dict[Ref, Ref]:
    """Same name, another file, and only one such class on each side."""
    found = {}
    for ref in gone:
        before = [each for each in gone if each.name == ref.name]
        after = [each for each in here if each.name == ref.name]
        if len(before) == len(after) == 1:
            found[ref] = after[0]
    return found


def _renamed(gone: list[ClassFact], here: list[ClassFact]) -> dict[Ref, Ref]:
    """Same file, same parameters and children, similar name; the most similar first."""
    near = [
        (difflib.SequenceMatcher(None, before.ref.name, after.ref.name, autojunk=False).ratio(), before.ref, after.ref)
        for before in gone
        for after in here
        if before.ref.file == after.ref.file and _made_of(before) == _made_of(after)
    ]
    found: dict[Ref, Ref] = {}
    for likeness, before_ref, after_ref in sorted(near, key=lambda each: (-each[0], each[1], each[2])):
        if likeness >= ALIKE and before_ref not in found and after_ref not in found.values():
            found[before_ref] = after_ref
    return found


def _made_of(fact: ClassFact) -> tuple[object, ...]:
    parameters = tuple(each.name for each in fact.forward.parameters) if fact.forward is not None else None
    return fact.is_pretrained, parameters, tuple((child.attribute, child.repeated) for child in fact.children)
