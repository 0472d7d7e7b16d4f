"""Where a region's embeddings are made before its graph: where what makes them asks for values.

Others stay inside, as upstream has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from .facts import EmbeddingBlock, Hazard, HazardLevel, ModelFacts, Ref
from .reach import below, reached, through

EMBEDDINGS = "embeddings before the graph"
"""What resolves the hazards of the modules that make them."""


def embedding(facts: ModelFacts, root: Ref, hazards: Iterable[Hazard]) -> EmbeddingBlock | None:
    """The block of a class's forward that is run before the graph; None where it can stay in, or has to."""
    forward = facts.of(root).forward
    block = forward.embedding if forward is not None else None
    if block is None or forward is None or forward.prologue:
        return None
    if any(each.name in block.recorded for each in through(facts, root, block.parts)):
        return None  # upstream records what these give while the forward runs
    apart = below(facts, root, block.parts)
    open_ = (each for each in hazards if each.resolved_by is None and each.level is not HazardLevel.NOTE)
    return block if any(each.owner in apart for each in open_) else None


def resolved(
    facts: ModelFacts, blocks: Mapping[Ref, EmbeddingBlock | None], hazards: tuple[Hazard, ...]
) -> tuple[Hazard, ...]:
    """The hazards, those marked as resolved that only such blocks reach. `blocks` has all that is compiled."""
    apart = {ref for root, block in blocks.items() if block for ref in below(facts, root, block.parts)}
    if not apart:
        return hazards
    for root, block in blocks.items():
        inside = set(reached(facts, root))
        apart -= inside - (below(facts, root, block.parts) if block else set())
    return tuple(
        dataclasses.replace(each, resolved_by=EMBEDDINGS) if each.resolved_by is None and each.owner in apart else each
        for each in hazards
    )
