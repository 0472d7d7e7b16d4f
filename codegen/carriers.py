"""Which classes only carry generated ones: their constructors and other methods are generated so that they make these."""

from __future__ import annotations

from .facts import Child, ChildKind, ClassFact, ModelFacts, Ref
from .plan import Carrier
from .reach import package_of


def carriers_of(facts: ModelFacts, generated: set[Ref]) -> tuple[Carrier, ...]:
    """Every class whose `__init__` makes a generated class, directly or through one that does, or an auto class's child."""
    complete = set(generated)
    carrying: set[Ref] = set()
    changed = True
    while changed:
        changed = False
        for fact in facts.classes:
            if (
                fact.ref in carrying
                or fact.init is None
                or (package_of(facts, fact.ref) != facts.model and fact.ref not in complete)
            ):
                continue
            if fact.inherits_init in carrying or _exchanged(facts, fact, complete):
                carrying.add(fact.ref)
                complete.add(fact.ref)
                changed = True
    return tuple(_carrier(facts, fact, complete, carrying) for fact in facts.classes if fact.ref in carrying)


def _carrier(facts: ModelFacts, fact: ClassFact, generated: set[Ref], carrying: set[Ref]) -> Carrier:
    assert fact.init is not None
    exchanged = _exchanged(facts, fact, generated)
    base = fact.inherits_init if fact.inherits_init in carrying else None
    names = dict.fromkeys(child.target.name if child.target else child.callee for child in exchanged)
    reason = f"makes {', '.join(names)}" if names else f"runs the __init__ of {base.name if base else fact.init.name}"
    inherited = facts.of(base).mro if base is not None else ()
    methods = {
        (child.owner, child.method) for child in exchanged if child.owner is not None and child.owner not in inherited
    }
    return Carrier(
        ref=fact.ref,
        init=fact.init if base is not None or any(child.owner is None for child in exchanged) else None,
        methods=tuple(sorted(methods)),
        base=base,
        exchanged=exchanged,
        reason=reason,
        span=fact.span,
    )


def _exchanged(facts: ModelFacts, fact: ClassFact, generated: set[Ref]) -> tuple[Child, ...]:
    elsewhere = dispatched(facts, fact)
    return tuple(
        child
        for child in fact.children
        if child.kind.by_config
        or child in elsewhere
        or (child.target in generated and child.kind is not ChildKind.FACTORY)
    )


def dispatched(facts: ModelFacts, fact: ClassFact) -> tuple[Child, ...]:
    """The children that a class of a model outside of Transformers makes by calling a model of Transformers: as with an auto
    class's children, the runtime takes that model's own package where it is built."""
    if not facts.is_local:
        return ()
    targets = ((child, facts.find(child.target)) for child in fact.children if child.kind is not ChildKind.AUTO)
    return tuple(
        child
        for child, target in targets
        if target is not None and target.is_pretrained and package_of(facts, target.ref) != facts.model
    )
