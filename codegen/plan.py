"""Facts → plan: which classes become regions, which only carry them, what is hoisted, what is rewritten.

Pure: no file is read here. Everything that `render` writes and `vgen explain` shows stands in the plan.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from .errors import VgenError
from .facts import (
    ArgumentShape,
    Child,
    ChildKind,
    ClassFact,
    Hazard,
    HazardLevel,
    Modality,
    ModelFacts,
    PrologueCall,
    Ref,
    Role,
    RoleFact,
    Span,
)


class Granularity(StrEnum):
    """`whole`: one graph for the region. `block`: each repeated layer class is a region. `auto`: whole where it can be."""

    WHOLE = "whole"
    BLOCK = "block"
    AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A class whose forward is compiled. `granularity` is never AUTO here: the plan has decided."""

    ref: Ref
    tag: str
    role: Role
    modality: Modality
    granularity: Granularity
    contract: tuple[ArgumentShape, ...]
    hoisted: tuple[PrologueCall, ...]
    dropped: tuple[str, ...]
    """Parameters that only the prologue reads: the core is handed None for them."""
    packed_attention: bool
    rotary: bool
    records_outputs: bool
    reason: str
    span: Span

    @property
    def dynamic_dims(self) -> tuple[str, ...]:
        """The symbolic names of the dimensions that change from call to call, in order of appearance."""
        names = [dim for shape in self.contract for dim in shape.dims or () if isinstance(dim, str)]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """A class whose `__init__` is generated so that it makes generated children. `init` is where upstream defines it."""

    ref: Ref
    init: Ref
    base: Ref | None
    """A generated class whose `__init__` runs through `super()`: it becomes a base class, after the upstream class."""
    exchanged: tuple[Child, ...]
    reason: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """A rule applied to one method of one class."""

    ref: Ref
    rule: str
    method: str
    first_line: int
    last_line: int
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`order` lists every generated class of the package, children before parents, as upstream's file has them."""

    model: str
    file: str
    granularity: Granularity
    entries: tuple[Ref, ...]
    regions: tuple[Region, ...]
    carriers: tuple[Carrier, ...]
    rewrites: tuple[Rewrite, ...]
    order: tuple[Ref, ...]
    hazards: tuple[Hazard, ...]
    packages: tuple[str, ...]
    """Other models whose packages the AutoModel children of this one use by default."""

    @property
    def unresolved(self) -> tuple[Hazard, ...]:
        """What is left to matter: notes don't."""
        open_ = (hazard for hazard in self.hazards if hazard.resolved_by is None)
        return tuple(hazard for hazard in open_ if hazard.level is not HazardLevel.NOTE)


_LIST = "`vgen list` shows what can be built."


def make_plan(facts: ModelFacts, granularity: Granularity) -> Plan:
    """What to generate for one model.

    Raises `VgenError` "no-region" where nothing would be generated.
    """
    chosen = _chosen(facts)
    packages = {_package(role.ref) for role in facts.roles if _package(role.ref) != facts.model}
    hazards = _resolve(facts)
    regions = tuple(region for role in chosen for region in _regions(facts, role, chosen, hazards, granularity))
    rewrites = tuple(dict.fromkeys(rewrite for region in regions for rewrite in _rewrites(facts, region.ref)))
    carriers = _carriers(facts, {region.ref for region in regions} | {rewrite.ref for rewrite in rewrites})
    generated = {region.ref for region in regions} | {rewrite.ref for rewrite in rewrites}
    generated |= {carrier.ref for carrier in carriers}
    if not generated:
        raise VgenError("no-region", f"{facts.file} makes no class that could be compiled.", hint=_LIST)
    return Plan(
        model=facts.model,
        file=facts.file,
        granularity=granularity,
        entries=tuple(entry for entry in facts.entries if entry in generated),
        regions=regions,
        carriers=carriers,
        rewrites=rewrites,
        order=tuple(sorted(generated, key=lambda ref: (ref.file == facts.file, ref.file, facts.of(ref).span.line))),
        hazards=tuple(
            dict.fromkeys(
                hazard
                for role in chosen
                for ref in _reach(facts, role.ref)
                for hazard in hazards
                if hazard.owner == ref
            )
        ),
        packages=tuple(sorted(packages)),
    )


def _package(ref: Ref) -> str:
    """The folder of the model that a class belongs to."""
    return ref.file.rsplit("/", 2)[-2]


def _chosen(facts: ModelFacts) -> tuple[RoleFact, ...]:
    """One role fact for each class that this package compiles: the one with the longest way down from an entry, which is
    the way a user's model has it."""
    found: dict[Ref, RoleFact] = {}
    for role in sorted(facts.roles, key=lambda role: (role.role, -len(role.path), role.entry.name)):
        made_elsewhere = _package(role.ref) != facts.model and _is_auto(facts, role)
        if not made_elsewhere:
            found.setdefault(role.ref, role)
    return tuple(
        sorted(found.values(), key=lambda role: (role.role is not Role.ENCODER, facts.of(role.ref).span.line))
    )


def _is_auto(facts: ModelFacts, role: RoleFact) -> bool:
    """Whether the last step of the way is a child made with `AutoModel.from_config`, of whichever class the config asks for."""
    children = [child for fact in facts.classes for child in fact.children]
    return any(
        child.kind is ChildKind.AUTO and child.target == role.ref and child.attribute == role.path[-1]
        for child in children
        if role.path
    )


def _reach(facts: ModelFacts, root: Ref) -> tuple[Ref, ...]:
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


def _resolve(facts: ModelFacts) -> tuple[Hazard, ...]:
    """The hazards, those inside a packed-attention pattern marked as resolved by that rewrite."""
    splits = [fact.forward.packed for fact in facts.classes if fact.forward is not None and fact.forward.packed]
    found = []
    for hazard in facts.hazards:
        inside = any(
            s.span.file == hazard.span.file and s.first_line <= hazard.span.line <= s.last_line for s in splits
        )
        found.append(dataclasses.replace(hazard, resolved_by="packed-attention") if inside else hazard)
    return tuple(found)


def _regions(
    facts: ModelFacts,
    role: RoleFact,
    chosen: tuple[RoleFact, ...],
    hazards: tuple[Hazard, ...],
    granularity: Granularity,
) -> tuple[Region, ...]:
    """The regions for one role: the class itself, or each repeated layer class below it."""
    reach = _reach(facts, role.ref)
    blocks = _blocks(facts, role.ref)
    breaking = [hazard for hazard in hazards if hazard.resolved_by is None and hazard.level is HazardLevel.ERROR]
    broken = any(hazard.owner in reach for hazard in breaking)
    in_blocks = {ref for block in blocks for ref in _reach(facts, block)}
    clean_blocks = all(hazard.owner not in in_blocks for hazard in breaking)
    match granularity:
        case Granularity.WHOLE:
            split = False
        case Granularity.BLOCK:
            split = bool(blocks)
        case Granularity.AUTO:
            split = broken and bool(blocks) and clean_blocks
        case _:
            assert_never(granularity)
    tag = _tag(facts, role, chosen)
    if not split:
        return (_region(facts, role, role.ref, tag, Granularity.WHOLE, role.reason),)
    reason = f"each is one of the repeated layers of {role.ref.name}"
    tags = {block: f"{tag}.block" if len(blocks) == 1 else f"{tag}.{block.name}" for block in blocks}
    return tuple(_region(facts, role, block, tags[block], Granularity.BLOCK, reason) for block in blocks)


def _tag(facts: ModelFacts, role: RoleFact, chosen: tuple[RoleFact, ...]) -> str:
    """`model.role`, with the class where several classes of the model play the role; the model alone where the role is the
    instance's."""
    alike = [other for other in chosen if other.role is role.role]
    name = f".{role.ref.name}" if len(alike) > 1 else ""
    return f"{facts.model}{name}" if role.role is Role.EITHER else f"{facts.model}.{role.role}{name}"


def _blocks(facts: ModelFacts, root: Ref) -> tuple[Ref, ...]:
    """The nearest repeated layer classes with a forward, below `root`."""
    found: dict[Ref, None] = {}
    pending, seen = [root], {root}
    while pending:
        fact = facts.of(pending.pop(0))
        for child in fact.children:
            below = facts.find(child.target)
            if below is None or below.ref in seen:
                continue
            seen.add(below.ref)
            if child.repeated and below.forward is not None:
                found[below.ref] = None
            else:
                pending.append(below.ref)
    return tuple(found)


def _region(facts: ModelFacts, role: RoleFact, ref: Ref, tag: str, granularity: Granularity, reason: str) -> Region:
    fact = facts.of(ref)
    assert fact.forward is not None
    forward = fact.forward
    reach = [facts.of(below) for below in _reach(facts, ref)]
    return Region(
        ref=ref,
        tag=tag,
        role=role.role,
        modality=role.modality,
        granularity=granularity,
        contract=tuple(shape for shape in forward.shapes if shape.name not in forward.prologue_only),
        hoisted=forward.prologue,
        dropped=forward.prologue_only,
        packed_attention=any(below.forward is not None and below.forward.packed is not None for below in reach),
        rotary=any("dynamic_rope_update" in below.forward.decorators for below in reach if below.forward is not None),
        records_outputs=any(decorator.startswith("capture_outputs") for decorator in forward.decorators),
        reason=reason,
        span=fact.span,
    )


def _rewrites(facts: ModelFacts, root: Ref) -> tuple[Rewrite, ...]:
    found = []
    for ref in _reach(facts, root):
        forward = facts.of(ref).forward
        if forward is not None and forward.packed is not None:
            split = forward.packed
            found.append(
                Rewrite(
                    ref=ref,
                    rule="packed-attention",
                    method=split.method,
                    first_line=split.first_line,
                    last_line=split.last_line,
                    span=split.span,
                )
            )
    return tuple(found)


def _carriers(facts: ModelFacts, generated: set[Ref]) -> tuple[Carrier, ...]:
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
                or (_package(fact.ref) != facts.model and fact.ref not in complete)
            ):
                continue
            if fact.inherits_init in carrying or _exchanged(fact, complete):
                carrying.add(fact.ref)
                complete.add(fact.ref)
                changed = True
    return tuple(_carrier(fact, complete, carrying) for fact in facts.classes if fact.ref in carrying)


def _carrier(fact: ClassFact, generated: set[Ref], carrying: set[Ref]) -> Carrier:
    assert fact.init is not None
    exchanged = _exchanged(fact, generated)
    base = fact.inherits_init if fact.inherits_init in carrying else None
    names = dict.fromkeys(child.target.name if child.target else child.callee for child in exchanged)
    reason = f"makes {', '.join(names)}" if names else f"runs the __init__ of {base.name if base else fact.init.name}"
    return Carrier(ref=fact.ref, init=fact.init, base=base, exchanged=exchanged, reason=reason, span=fact.span)


def _exchanged(fact: ClassFact, generated: set[Ref]) -> tuple[Child, ...]:
    return tuple(child for child in fact.children if child.kind is ChildKind.AUTO or child.target in generated)
