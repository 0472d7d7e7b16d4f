"""What `vgen vet` says of a model: its hazards, what became of each in the plan, and what its author can do about them.

Pure but for `model_of`: from facts to findings. How they are shown is `codegen.show.vet`'s.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import VgenError
from .facts import Hazard, HazardKind, HazardLevel, ModelFacts, Ref, Span
from .plan import Granularity, Plan, make_plan
from .source import PACKAGE, Source

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
    split = {region.ref for region in plan.regions if region.granularity is Granularity.BLOCK}
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


def is_path(name: str) -> bool:
    """Whether an argument names a file, rather than a model."""
    return name.endswith(".py") or "/" in name or "\\" in name


def model_of(name: str, source: Source) -> str:
    """The model that an argument names, by its type, its folder, or the path of its modeling file.

    Raises:
        VgenError: `unknown-model`, `missing-file`, or `not-a-modeling-file` where the path isn't that of a modeling file
            of `source`.
    """
    if not is_path(name):
        return source.resolve_model(name)
    path = Path(name)
    if not path.is_file():
        raise VgenError("missing-file", f"{name} is no file.", hint="Name a modeling file, or a model such as qwen2.")
    try:
        rel = path.resolve().relative_to(source.root.resolve()).as_posix()
    except ValueError:
        rel = ""
    match = re.fullmatch(rf"{PACKAGE}/models/(\w+)/modeling_\1\.py", rel)
    if match is None:
        raise VgenError(
            "not-a-modeling-file",
            f"{name} isn't the modeling file of a model of the Transformers in {source.root}.",
            hint="Name the tree that it is part of with --transformers.",
        )
    return match[1]


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
