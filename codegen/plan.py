"""Facts → plan: which classes become regions, which only carry them, what is hoisted, what is rewritten.

Pure: no file is read here. Everything that `render` writes and `vgen explain` shows stands in the plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from .by_layer import ByLayer, by_layer
from .embedding import embedding, resolved
from .errors import VgenError
from .facts import (
    ArgumentShape,
    Child,
    ChildKind,
    ClassFact,
    EmbeddingBlock,
    Forward,
    Hazard,
    HazardLevel,
    MaskPositions,
    Modality,
    ModelFacts,
    PackedSplit,
    Pattern,
    PrologueCall,
    Ref,
    Role,
    RoleFact,
    Span,
)
from .files import COPY
from .reach import reached


class Granularity(StrEnum):
    """`whole`: one graph for the region. `block`: each repeated layer class is a region. `auto`: whole where it can be."""

    WHOLE = "whole"
    BLOCK = "block"
    AUTO = "auto"


BY_LAYER = "by layer in training"
"""How a region is cut whose forward leaves out layers at random; it resolves the hazards of the branches that do."""


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
    """Parameters that only the prologue reads, or what makes the embeddings: the core is handed None for them."""
    packed_attention: bool
    rotary: bool
    records_outputs: bool
    reason: str
    span: Span
    by_layer: ByLayer | None = None
    """When its layers are compiled instead."""
    graph_only: tuple[Pattern, ...] = ()
    """Branches that no graph of it may take."""
    truths: tuple[str, ...] = ()
    """Arguments that it is only asked of whether they hold anything."""
    embedding: EmbeddingBlock | None = None
    """What makes its embeddings before it."""
    masks: MaskPositions | None = None
    """What positions all of its masks are made of, where that is known and there are any."""
    only_in_training: bool = False
    """It is such a layer: outside of training it is a part of the region's graph."""

    @property
    def cut(self) -> str:
        """How it is cut into graphs, in words."""
        if self.by_layer is not None:
            return f"{self.granularity}, {BY_LAYER}"
        return f"{self.granularity}, in training" if self.only_in_training else self.granularity.value

    @property
    def dynamic_dims(self) -> tuple[str, ...]:
        """The symbolic names of the dimensions that change from call to call, in order of appearance."""
        names = [dim for shape in self.contract for dim in shape.dims or () if isinstance(dim, str)]
        return tuple(dict.fromkeys(names))

    @property
    def any_shape(self) -> tuple[str, ...]:
        """The arguments that are tensors of whose shape nothing is known: every dimension may change."""
        return tuple(shape.name for shape in self.contract if shape.is_unknown)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """What may change from call to call: dimensions by name, then the arguments of any shape."""
        return (*self.dynamic_dims, *(f"all of {name}" for name in self.any_shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """A class whose `__init__`, or another method, is generated so that it makes generated children.

    `init` is where upstream defines its `__init__`, None where that makes none of them; `methods` are the other methods, with
    the classes that define them.
    """

    ref: Ref
    init: Ref | None
    methods: tuple[tuple[Ref, str], ...]
    base: Ref | None
    """A generated class whose `__init__` runs through `super()`: it becomes a base class, after the upstream class."""
    exchanged: tuple[Child, ...]
    reason: str
    span: Span


class Rule(StrEnum):
    """What replaces a source pattern: see the file of that name in `codegen.rewrite`."""

    PACKED_ATTENTION = "packed-attention"
    GROUPED_ATTENTION = "grouped-attention"
    BRANCHLESS_CLAMP = "branchless-clamp"
    VALUE_LOOP = "value-loop"
    SIZE_DIVISION = "size-division"
    EXPERT_LOOP = "expert-loop"
    SIZE_BUFFER = "size-buffer"
    KNOWN_TRUTH = "known-truth"
    SIZE_LOOP = "size-loop"
    LATE_MESSAGE = "late-message"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """A rule applied to one method of one class."""

    ref: Ref
    rule: Rule
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
    packages = {_package(facts, role.ref) for role in facts.roles if _package(facts, role.ref) != facts.model}
    packages |= {
        _package(facts, child.target) for fact in facts.classes for child in dispatched(facts, fact) if child.target
    }
    is_auto = granularity is Granularity.AUTO
    layers = {role.ref: by_layer(facts, role.ref) if is_auto else None for role in chosen}
    hazards = _resolve(facts, tuple(each for each in layers.values() if each is not None))
    embeddings = {role.ref: embedding(facts, role.ref, hazards) for role in chosen}
    hazards = resolved(facts, embeddings, hazards)
    regions = _once(
        _apart(region, embeddings.get(region.ref))
        for role in chosen
        for region in _regions(facts, role, chosen, hazards, granularity, layers[role.ref])
    )
    rewrites = tuple(dict.fromkeys(rewrite for region in regions for rewrite in _rewrites(facts, region)))
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
                for ref in reached(facts, role.ref)
                for hazard in hazards
                if hazard.owner == ref
            )
        ),
        packages=tuple(sorted(packages)),
    )


def _package(facts: ModelFacts, ref: Ref) -> str:
    """The folder of the model that a class belongs to."""
    return facts.model if ref.file.startswith(f"{COPY}/") else ref.file.rsplit("/", 2)[-2]


def dispatched(facts: ModelFacts, fact: ClassFact) -> tuple[Child, ...]:
    """The children that a class of a model outside of Transformers makes by calling a model of Transformers: as with an auto
    class's children, the runtime takes that model's own package where it is built."""
    if not facts.is_local:
        return ()
    targets = ((child, facts.find(child.target)) for child in fact.children if child.kind is not ChildKind.AUTO)
    return tuple(
        child
        for child, target in targets
        if target is not None and target.is_pretrained and _package(facts, target.ref) != facts.model
    )


def _chosen(facts: ModelFacts) -> tuple[RoleFact, ...]:
    """One role fact for each class that this package compiles: the one with the longest way down from an entry, which is
    the way a user's model has it."""
    found: dict[Ref, RoleFact] = {}
    for role in sorted(facts.roles, key=lambda role: (role.role, -len(role.path), role.entry.name)):
        made_elsewhere = _package(facts, role.ref) != facts.model and (facts.is_local or _is_auto(facts, role))
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


def _once(regions: Iterable[Region]) -> tuple[Region, ...]:
    """Without the layers that several regions run by, or that are regions of their own, but for the first."""
    found = list(regions)
    known = {region.ref for region in found if not region.only_in_training}
    kept = []
    for region in found:
        if not region.only_in_training or region.ref not in known:
            kept.append(region)
            known.add(region.ref)
    return tuple(kept)


def _resolve(facts: ModelFacts, choices: tuple[ByLayer, ...]) -> tuple[Hazard, ...]:
    """The hazards, those inside a pattern that is rewritten marked as resolved by that rewrite, and branches that choose between
    layers by what is done there."""
    forwards = [fact.forward for fact in facts.classes if fact.forward is not None]
    places: dict[str, dict[int, str]] = {}
    for forward in forwards:
        for found, rule in (
            (forward.clamps, Rule.BRANCHLESS_CLAMP),
            (forward.packed, Rule.PACKED_ATTENTION),
            (forward.loop, Rule.VALUE_LOOP),
            (forward.experts, Rule.EXPERT_LOOP),
            *((each, Rule.SIZE_LOOP) for each in forward.looping),
        ):
            if found is not None:
                lines = range(found.first_line, found.last_line + 1)
                places.setdefault(found.span.file, {}).update(dict.fromkeys(lines, rule.value))
    for choice in choices:
        for _, span in choice.places:
            places.setdefault(span.file, {})[span.line] = BY_LAYER
    rules = [places.get(hazard.span.file, {}).get(hazard.span.line) for hazard in facts.hazards]
    return tuple(
        hazard if rule is None else dataclasses.replace(hazard, resolved_by=rule)
        for hazard, rule in zip(facts.hazards, rules, strict=True)
    )


def _regions(
    facts: ModelFacts,
    role: RoleFact,
    chosen: tuple[RoleFact, ...],
    hazards: tuple[Hazard, ...],
    granularity: Granularity,
    choice: ByLayer | None,
) -> tuple[Region, ...]:
    """The regions for one role: the class itself, with its layers where it runs by them in training, or each repeated layer
    class below it."""
    reach = reached(facts, role.ref)
    blocks = _blocks(facts, role.ref)
    breaking = [hazard for hazard in hazards if hazard.resolved_by is None and hazard.level is HazardLevel.ERROR]
    broken = any(hazard.owner in reach for hazard in breaking)
    in_blocks = {ref for block in blocks for ref in reached(facts, block)}
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
    if split:
        return _layers(facts, role, tag, blocks, f"each is one of the repeated layers of {role.ref.name}")
    whole = _region(facts, role, role.ref, tag, Granularity.WHOLE, role.reason)
    if choice is None:
        return (whole,)
    reason = f"in training {role.ref.name} leaves out some of these layers at random"
    layers = _layers(facts, role, tag, choice.layers, reason)
    return (
        dataclasses.replace(whole, by_layer=choice),
        *(dataclasses.replace(layer, only_in_training=True) for layer in layers),
    )


def _apart(region: Region, block: EmbeddingBlock | None) -> Region:
    """A region that is given its embeddings, where they are made before it."""
    if block is None:
        return region
    return dataclasses.replace(
        region,
        embedding=block,
        dropped=(*region.dropped, *block.made_of),
        contract=tuple(shape for shape in region.contract if shape.name not in block.made_of),
    )


def _layers(facts: ModelFacts, role: RoleFact, tag: str, layers: tuple[Ref, ...], reason: str) -> tuple[Region, ...]:
    tags = {layer: f"{tag}.block" if len(layers) == 1 else f"{tag}.{layer.name}" for layer in layers}
    return tuple(_region(facts, role, layer, tags[layer], Granularity.BLOCK, reason) for layer in layers)


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
    reach = [facts.of(below) for below in reached(facts, ref)]
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
        records_outputs=fact.is_pretrained
        and any(
            decorator.startswith("capture_outputs")
            for below in reach
            if below.forward is not None
            for decorator in below.forward.decorators
        ),
        reason=reason,
        span=fact.span,
        graph_only=tuple(
            dict.fromkeys(each for below in reach if below.forward is not None for each in below.forward.graph_only)
        ),
        truths=forward.truths,
        masks=_masks(facts, fact, reach[1:]),
    )


def _masks(facts: ModelFacts, fact: ClassFact, inside: list[ClassFact]) -> MaskPositions | None:
    """What a class's masks are made of, if it makes all that there are: the classes of the modules inside are known, and make
    none."""
    forward = fact.forward
    if forward is None or forward.masks is None or not forward.masks.are_made:
        return None
    made = [child for each in (fact, *inside) for child in each.children]
    if any(child.kind.by_config or facts.find(child.target) is None for child in made):
        return None
    own = [each.forward.masks for each in inside if each.forward is not None]
    return forward.masks if all(each is not None and not each.are_made for each in own) else None


def _rewrites(facts: ModelFacts, region: Region) -> tuple[Rewrite, ...]:
    found: list[Rewrite] = []
    for ref in reached(facts, region.ref):
        forward = facts.of(ref).forward
        if forward is None:
            continue
        if forward.loop is not None:
            found.append(_rewrite(ref, Rule.VALUE_LOOP, forward.loop))
        if forward.experts is not None:
            found.append(_rewrite(ref, Rule.EXPERT_LOOP, forward.experts))
        found += [_rewrite(ref, Rule.SIZE_DIVISION, each) for each in forward.divisions]
        if forward.sizes is not None and ref != region.ref and not _is_rewritten(forward):
            # A region's own forward is what the region calls.
            found += [_rewrite(ref, Rule.SIZE_BUFFER, each) for each in forward.sizes.methods]
        elif forward.asked is not None and ref != region.ref and not _is_rewritten(forward):
            found.append(_rewrite(ref, Rule.KNOWN_TRUTH, forward.asked))
        elif not _is_rewritten(forward):
            own = "forward" if ref == region.ref else ""
            found += [_rewrite(ref, Rule.SIZE_LOOP, each) for each in forward.size_loops if each.method != own]
        if forward.packed is not None:
            found.append(_rewrite(ref, Rule.PACKED_ATTENTION, forward.packed))
        elif forward.grouped is not None and region.role is not Role.ENCODER:
            # One token at a time is what decoders are given.
            place = forward.grouped.span
            found.append(
                Rewrite(
                    ref=ref,
                    rule=Rule.GROUPED_ATTENTION,
                    method=forward.grouped.method,
                    first_line=place.line,
                    last_line=place.line,
                    span=place,
                )
            )
        elif forward.clamps is not None and not (ref == region.ref and forward.prologue):
            # A region's own forward with a prologue is what the region calls.
            found.append(_rewrite(ref, Rule.BRANCHLESS_CLAMP, forward.clamps))
        # One method, one rule; and a region's own forward is what the region calls.
        taken = {each.method for each in found if each.ref == ref} | ({"forward"} if ref == region.ref else set())
        found += [_rewrite(ref, Rule.LATE_MESSAGE, each) for each in forward.messages if each.method not in taken]
    return tuple(found)


def _is_rewritten(forward: Forward) -> bool:
    """Whether another rule has changed a method of the class: one method, one rule."""
    others = (forward.loop, forward.experts, forward.packed, forward.grouped, forward.clamps)
    return bool(forward.divisions) or any(each is not None for each in others)


def _rewrite(ref: Ref, rule: Rule, found: Pattern | PackedSplit) -> Rewrite:
    return Rewrite(
        ref=ref,
        rule=rule,
        method=found.method,
        first_line=found.first_line,
        last_line=found.last_line,
        span=found.span,
    )


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
                or (_package(facts, fact.ref) != facts.model and fact.ref not in complete)
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
