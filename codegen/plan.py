"""The plan of a package: which classes become regions, which only carry them, what is hoisted, what is rewritten.

Everything that `render` writes and `vgen explain` shows stands in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .by_layer import ByLayer
from .facts import (
    ArgumentShape,
    Child,
    EmbeddingBlock,
    Hazard,
    HazardLevel,
    MaskPositions,
    Modality,
    Pattern,
    PrologueCall,
    Ref,
    Role,
    Span,
)


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
    SIZE_RANGE = "size-range"
    NESTED_RECORDER = "nested-recorder"


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
