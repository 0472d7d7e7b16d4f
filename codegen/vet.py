"""What `vgen vet` says of a model: its hazards, what became of each in the plan, and what its author can do about them.

From facts to findings. How they are shown is `codegen.show.vet`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from .analyze.model import analyze
from .facts import Hazard, HazardKind, HazardLevel, ModelFacts, Ref, Span
from .files import COPY
from .package import Options
from .plan import Granularity, Plan
from .planning import make_plan
from .target import Target

BLOCKS = "block granularity"
"""What resolves the hazards that lie between the blocks: there the model runs as it did before."""

ADVICE = {
    HazardKind.HOST_READ: "Compute it in a helper that pops its result from kwargs, so that callers can pass it in.",
    HazardKind.DATA_BRANCH: "Use torch.where, or decide by shapes, by the config, or in a helper outside of the graph.",
    HazardKind.DATA_LOOP: "Write the loop as one operation over the whole tensor, or take the lengths as an argument.",
    HazardKind.DATA_SHAPE: "Keep the full shape and mask what doesn't count, or state the size (output_size, num_classes).",
    HazardKind.MASK_INDEX: "Keep the full shape: torch.where or masked_scatter in place of picking by the mask.",
    HazardKind.LOGGING: "Log in __init__ or in a caller: inside a graph every logger call breaks it, warning_once as well.",
    HazardKind.STATE_WRITE: "Return the value, or write it in a caller, outside of what is compiled.",
    HazardKind.DYNAMIC_ROPE: "Nothing to do: a region with such a config runs uncompiled.",
    HazardKind.LAYER_NUMBER: "Nothing to do for a graph of the whole model; a graph for layers is compiled for each.",
    HazardKind.GRAPH_ONLY: "Compute the same in both; until then, what takes this branch in a graph runs uncompiled.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One hazard at one place. `owners` are the classes in reach of which it lies."""

    model: str
    kind: HazardKind
    level: HazardLevel
    message: str
    span: Span
    owners: tuple[str, ...]
    resolved_by: str | None

    @property
    def advice(self) -> str:
        return ADVICE[self.kind]


def findings(facts: ModelFacts, granularity: Granularity = Granularity.AUTO) -> tuple[Finding, ...]:
    """The hazards of one model, by place; one that several classes share stands there once.

    Raises:
        VgenError: `no-region`, where nothing of the model would be compiled.
    """
    plan = make_plan(facts, granularity)
    blocks = (region for region in plan.regions if region.granularity is Granularity.BLOCK)
    split = {region.ref for region in blocks if not region.only_in_training}
    compiled = _reach(facts, (region.ref for region in plan.regions))
    in_blocks = _reach(facts, split)
    found: dict[tuple[Span, HazardKind, str], list[Hazard]] = {}
    for hazard in plan.hazards:
        if split and hazard.owner not in compiled and hazard.resolved_by is None:
            hazard = dataclasses.replace(hazard, resolved_by=BLOCKS)
        if hazard.kind is HazardKind.LAYER_NUMBER and hazard.owner in in_blocks:
            hazard = dataclasses.replace(hazard, level=HazardLevel.WARNING)
        found.setdefault((hazard.span, hazard.kind, hazard.message), []).append(hazard)
    merged = (_finding(plan, alike) for alike in found.values())
    return tuple(sorted(merged, key=lambda finding: (finding.span, finding.kind, finding.message)))


def _finding(plan: Plan, alike: list[Hazard]) -> Finding:
    """Of classes that share a place, those count where it isn't resolved, if there are any."""
    counting = [hazard for hazard in alike if hazard.resolved_by is None] or alike
    worst = max(counting, key=lambda hazard: hazard.level.rank)
    return Finding(
        model=plan.model,
        kind=worst.kind,
        level=worst.level,
        message=worst.message,
        span=worst.span,
        owners=tuple(sorted({hazard.owner.name for hazard in counting})),
        resolved_by=worst.resolved_by,
    )


def at_least(found: Iterable[Finding], level: HazardLevel) -> tuple[Finding, ...]:
    """Those at or above a level."""
    return tuple(finding for finding in found if finding.level.rank >= level.rank)


def unresolved(found: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(finding for finding in found if finding.resolved_by is None)


def vet(target: Target, options: Options) -> tuple[Finding, ...]:
    """The findings of what an argument names, of what a build with these options compiles; in files outside of Transformers with
    their whole paths.

    Raises:
        VgenError: As `findings`, and where the source can't be read.
    """
    source = target.source
    with source.placed():
        facts = analyze(source, target.model, options.decided(target.model))
        found = findings(facts, options.granularity_of(target.model))
    if source.local is None:
        return found
    places = [
        source.local.path(finding.span.file) if finding.span.file.startswith(COPY) else None for finding in found
    ]
    return tuple(
        dataclasses.replace(finding, span=dataclasses.replace(finding.span, file=place.as_posix()))
        if place
        else finding
        for finding, place in zip(found, places, strict=True)
    )


def _reach(facts: ModelFacts, roots: Iterable[Ref]) -> frozenset[Ref]:
    """The classes of the modules inside those of `roots`, these included."""
    seen: set[Ref] = set()
    pending = list(roots)
    while pending:
        ref = pending.pop()
        fact = facts.find(ref)
        if ref not in seen and fact is not None:
            seen.add(ref)
            pending += [child.target for child in fact.children if child.target is not None]
    return frozenset(seen)
