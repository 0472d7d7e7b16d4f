"""Which classes become regions for a role: the class itself, or each repeated layer class below it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import assert_never

from .by_layer import ByLayer
from .facts import ClassFact, EmbeddingBlock, Hazard, HazardLevel, MaskPositions, ModelFacts, Ref, Role, RoleFact
from .plan import Granularity, Region
from .reach import reached


def regions_of(
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


def once(regions: Iterable[Region]) -> tuple[Region, ...]:
    """Without the layers that several regions run by, or that are regions of their own, but for the first."""
    found = list(regions)
    known = {region.ref for region in found if not region.only_in_training}
    kept = []
    for region in found:
        if not region.only_in_training or region.ref not in known:
            kept.append(region)
            known.add(region.ref)
    return tuple(kept)


def apart(region: Region, block: EmbeddingBlock | None) -> Region:
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
