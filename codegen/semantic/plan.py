"""What changed in the plan: regions, their granularity and contracts, carriers, rewrites, hazards, other packages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..facts import ArgumentShape, Hazard, ModelFacts, Ref
from ..plan import Carrier, Granularity, Plan, Region
from .change import Change, Effect, Kind, Thing, changed, compared
from .identity import Identity

UNRESOLVED = "unresolved"


def plan_changes(old: tuple[ModelFacts, Plan], new: tuple[ModelFacts, Plan], identity: Identity) -> Iterator[Change]:
    """Changes of what is generated. Names are those of the new release where a class has both."""
    before, after = old[1], new[1]
    yield from _regions(before, after, identity)
    yield from compared(
        Kind.CARRIER,
        {identity.now(each.ref): _carrier(each, identity) for each in before.carriers},
        {each.ref: _carrier(each) for each in after.carriers},
    )
    yield from compared(Kind.REWRITE, _rewrites(before, identity), _rewrites(after))
    yield from _hazards(before, after, identity)
    yield from compared(
        Kind.PACKAGE,
        {name: Thing(subject=name) for name in before.packages},
        {name: Thing(subject=name) for name in after.packages},
    )


def _regions(old: Plan, new: Plan, identity: Identity) -> Iterator[Change]:
    """Regions of the same class are compared; those left are of one part that is now cut otherwise, or came or went."""
    before = {identity.now(region.ref): region for region in old.regions}
    after = {region.ref: region for region in new.regions}
    for ref, region in after.items():
        if ref in before:
            yield from _region_changes(before[ref], region)
    gone = _parts(region for ref, region in before.items() if ref not in after)
    came = _parts(region for ref, region in after.items() if ref not in before)
    for part in dict.fromkeys((*gone, *came)):
        ours, theirs = gone.get(part, []), came.get(part, [])
        if ours and theirs and ours[0].granularity is not theirs[0].granularity:
            yield changed(Kind.GRANULARITY, part, _cut(ours, identity), _cut(theirs))
            continue
        for region in ours:
            yield Change(
                kind=Kind.REGION, effect=Effect.WENT, subject=region.tag, before=_region(region), old=region.span
            )
        for region in theirs:
            yield Change(
                kind=Kind.REGION, effect=Effect.CAME, subject=region.tag, after=_region(region), new=region.span
            )


def _parts(regions: Iterator[Region]) -> dict[str, list[Region]]:
    """By the tag of the part that plays the role: a block's tag has the layer's after it."""
    found: dict[str, list[Region]] = {}
    for region in regions:
        whole = region.tag.rpartition(".")[0] if region.granularity is Granularity.BLOCK else region.tag
        found.setdefault(whole, []).append(region)
    return found


def _cut(regions: list[Region], identity: Identity | None = None) -> Thing:
    names = [identity.now(region.ref).name if identity is not None else region.ref.name for region in regions]
    return Thing(
        subject=regions[0].tag, text=f"{regions[0].granularity.value}: {', '.join(names)}", span=regions[0].span
    )


def _region(region: Region) -> str:
    return f"{region.ref.name}, {region.modality.value} {region.role.value}, {region.cut}"


def _region_changes(old: Region, new: Region) -> Iterator[Change]:
    if old.granularity is not new.granularity:
        yield changed(
            Kind.GRANULARITY,
            new.tag,
            Thing(subject=new.tag, text=old.granularity.value, span=old.span),
            Thing(subject=new.tag, text=new.granularity.value, span=new.span),
        )
    yield from compared(Kind.REGION, _traits(old, new.tag), _traits(new, new.tag))
    yield from compared(Kind.CONTRACT, _contract(old, new.tag), _contract(new, new.tag))


def _traits(region: Region, tag: str) -> dict[object, Thing]:
    found: dict[object, Thing] = {
        "tag": Thing(subject=tag, text=f"tag {region.tag}", span=region.span),
        "role": Thing(subject=tag, text=f"{region.modality.value} {region.role.value}", span=region.span),
    }
    for name in region.dropped:
        found["dropped", name] = Thing(subject=f"{tag}: {name} read before the graph only", span=region.span)
    if region.embedding is not None:
        block = region.embedding
        found["embeddings"] = Thing(subject=f"{tag}: {block.target} made before the graph", span=block.place.span)
    if region.by_layer is not None:
        found["by layer"] = Thing(
            subject=f"{tag}: by layer", text=f"where {region.by_layer.condition}", span=region.span
        )
    for present, words in (
        (region.packed_attention, "packed attention"),
        (region.rotary, "rotary embedding from the config"),
        (region.records_outputs, "recording of hidden states and attentions"),
    ):
        if present:
            found[words] = Thing(subject=f"{tag}: {words}", span=region.span)
    return found


def _contract(region: Region, tag: str) -> dict[object, Thing]:
    return {
        shape.name: Thing(subject=f"{tag}: {shape.name}", text=shape_words(shape), span=region.span)
        for shape in region.contract
    }


def shape_words(shape: ArgumentShape) -> str:
    """What a contract says of one argument: `(batch, seq_len, fixed)`."""
    if shape.is_python_int:
        return "a Python int"
    if shape.is_unknown:
        return "tensors of any shape" if shape.is_tuple else "a tensor of any shape"
    if shape.dims is None:
        return "a Python value, or a tensor of any shape"
    names = ["fixed" if dim is None else str(dim) for dim in shape.dims]
    dims = f"({', '.join(names)}{',' if len(names) == 1 else ''})"
    return f"tensors, each {dims}" if shape.is_tuple else dims


def _carrier(carrier: Carrier, identity: Identity | None = None) -> Thing:
    def name(ref: Ref) -> str:
        return identity.now(ref).name if identity is not None else ref.name

    made = dict.fromkeys(name(child.target) if child.target else child.callee for child in carrier.exchanged)
    text = f"exchanges {', '.join(made) or 'nothing itself'}"
    if carrier.init is not None and carrier.init != carrier.ref:
        text += f", by the __init__ of {name(carrier.init)}"
    methods = [method for _, method in carrier.methods]
    text += f", in {', '.join(methods)}" if methods else ""
    if carrier.base is not None:
        text += f", on {name(carrier.base)}"
    return Thing(subject=name(carrier.ref), text=text, span=carrier.span)


def _rewrites(plan: Plan, identity: Identity | None = None) -> dict[object, Thing]:
    found: dict[object, Thing] = {}
    for each in plan.rewrites:
        ref = identity.now(each.ref) if identity is not None else each.ref
        found[ref, each.rule, each.method] = Thing(subject=f"{each.rule} on {ref.name}.{each.method}", span=each.span)
    return found


def _hazards(old: Plan, new: Plan, identity: Identity) -> Iterator[Change]:
    """By what and whose they are, not by line; several alike in one class count together."""
    before, after = _grouped(old, identity), _grouped(new)
    for change in compared(Kind.HAZARD, before, after):
        yield change if change.effect is not Effect.CHANGED else _resolution(change)


def _grouped(plan: Plan, identity: Identity | None = None) -> dict[object, Thing]:
    groups: dict[tuple[str, str, str], list[Hazard]] = {}
    for hazard in plan.hazards:
        owner = identity.now(hazard.owner).name if identity is not None else hazard.owner.name
        groups.setdefault((hazard.kind.value, hazard.message, owner), []).append(hazard)
    found: dict[object, Thing] = {}
    for (kind, message, owner), alike in groups.items():
        subject = f"{kind}: {message}, in {owner}"
        found[kind, message, owner] = Thing(subject=subject, text=_states(alike), span=alike[0].span)
    return found


def _states(alike: list[Hazard]) -> str:
    counted = Counter(
        f"{each.level.value} {f'resolved by {each.resolved_by}' if each.resolved_by else UNRESOLVED}" for each in alike
    )
    return ", ".join(f"{state} ×{count}" if count > 1 else state for state, count in sorted(counted.items()))


def _resolution(change: Change) -> Change:
    was, is_now = (UNRESOLVED in (text or "") for text in (change.before, change.after))
    if was == is_now:
        return change
    effect = Effect.RESOLVED if was else Effect.UNRESOLVED
    return Change(
        kind=change.kind,
        effect=effect,
        subject=change.subject,
        before=change.before,
        after=change.after,
        old=change.old,
        new=change.new,
    )
