"""What was seen in the source: frozen, each with the place it was seen at.

Facts say what is there, never what to do about it: that is the plan's. No syntax tree outlives `codegen.analyze`; where a
rewrite needs the tree again it reads the definition again from its `SourceFile`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Span:
    """A place in a source file. `file` is relative to the folder that holds the package, with forward slashes."""

    file: str
    line: int
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file.rpartition('/')[2]}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Ref:
    """A top-level definition: the file it stands in and its name."""

    file: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.file})"


class Role(StrEnum):
    """What a class is in its model. EITHER: its config's `is_decoder` says it of each instance."""

    DECODER = "decoder"
    ENCODER = "encoder"
    EITHER = "either"


class Modality(StrEnum):
    """What a region reads. Encoders of images and audio compile when they are asked for, text always."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"


class ParameterKind(StrEnum):
    POSITIONAL_ONLY = "positional only"
    POSITIONAL = "positional"
    VAR_POSITIONAL = "*args"
    KEYWORD_ONLY = "keyword only"
    VAR_KEYWORD = "**kwargs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a forward, `self` left out. `annotation` and `default` are source text."""

    name: str
    kind: ParameterKind
    annotation: str | None
    default: str | None

    @property
    def is_variadic(self) -> bool:
        return self.kind in (ParameterKind.VAR_POSITIONAL, ParameterKind.VAR_KEYWORD)


class EvidenceSource(StrEnum):
    """Where a shape was read, the most trustworthy first; the last two say what it is a shape of, and how it was taken."""

    BODY = "use in the body"
    OWN_DOCSTRING = "its own docstring"
    SHARED_DOCSTRING = "auto_docstring's shared arguments"
    HELPER_DOCSTRING = "the helper's docstring"
    ANNOTATION = "its annotation"
    RESULT_ANNOTATION = "the helper's annotation"
    READING = "read as"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    source: EvidenceSource
    text: str
    span: Span


Dim = str | int | None
"""A dimension: a symbolic name (its size changes from call to call), a fixed size, or None (fixed, size not known)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentShape:
    """What is known of one argument that enters a region.

    `dims` is None where no evidence gives a shape, or where it disagrees; then every dimension may change. `is_tuple`: it is a
    tuple or list of tensors, and `dims` are those of each.
    """

    name: str
    is_tensor: bool
    is_tuple: bool = False
    is_python_int: bool = False
    dims: tuple[Dim, ...] | None = None
    evidence: tuple[Evidence, ...] = ()
    disagreement: str | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether it is a tensor, or several, of which nothing gives the shape."""
        return (self.is_tensor or self.is_tuple) and self.dims is None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrologueCall:
    """A statement `targets = helper(..., kwargs=kwargs)` in a forward, whose helper pops its results from `kwargs`.

    `keys[i]` is the key of `kwargs` under which the helper accepts what it would return for `targets[i]`.
    `reads` are the local names that its arguments use. Where the statement stands in the forward of a module inside, `within` is
    the way there (`embeddings`, `encoder.embeddings`), and `through` the classes on it.
    """

    targets: tuple[str, ...]
    keys: tuple[str, ...]
    helper: Ref
    text: str
    reads: tuple[str, ...]
    first_line: int
    last_line: int
    span: Span
    helper_span: Span
    within: str = ""
    through: tuple[Ref, ...] = ()


class HazardKind(StrEnum):
    HOST_READ = "host-read"
    DATA_BRANCH = "data-branch"
    DATA_LOOP = "data-loop"
    DATA_SHAPE = "data-shape"
    MASK_INDEX = "mask-index"
    LOGGING = "logging"
    STATE_WRITE = "state-write"
    DYNAMIC_ROPE = "dynamic-rope"
    LAYER_NUMBER = "layer-number"
    GRAPH_ONLY = "graph-only"


class HazardLevel(StrEnum):
    """What a hazard does. ERROR: breaks the graph. WARNING: recompiles, waits for the device, or falls back in some uses.
    NOTE: doesn't run inside the graph, or costs nothing as things are."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """The more serious, the higher."""
        return {HazardLevel.ERROR: 2, HazardLevel.WARNING: 1, HazardLevel.NOTE: 0}[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazard:
    """Something in reach of a region that breaks the graph, recompiles, or changes results."""

    kind: HazardKind
    message: str
    span: Span
    owner: Ref
    level: HazardLevel = HazardLevel.ERROR
    resolved_by: str | None = None


class ChildKind(StrEnum):
    DIRECT = "X(config)"
    FROM_CONFIG = "X._from_config(config)"
    AUTO = "AutoModel.from_config(config)"
    """Of any of Transformers' auto classes."""
    PRETRAINED = "AutoModel.from_pretrained(path)"
    BACKBONE = "load_backbone(config)"
    CHOSEN = "CLASSES[key](config)"
    """One of several classes: from a table, or through a local name. Each of them is a child."""
    FACTORY = "a function that makes it"

    @property
    def by_config(self) -> bool:
        """Whether Transformers' tables choose the class when the model is made."""
        return self in (ChildKind.AUTO, ChildKind.PRETRAINED, ChildKind.BACKBONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A module made in an `__init__` or another method: `self.attribute = callee(...)`, alone, in a list, or in a conditional.

    `target` is the class it makes where the source fixes it; for `AUTO` it is the class that the config's default gives,
    or None. `config` is the source text of the first argument.
    """

    attribute: str
    kind: ChildKind
    callee: str
    target: Ref | None
    config: str | None
    repeated: bool
    conditional: bool
    span: Span
    method: str = "__init__"
    owner: Ref | None = None
    """The class that defines `method`, where that isn't `__init__`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSplit:
    """Attention over each segment of a packed sequence, in one method: see `codegen.analyze.packed`."""

    owner: Ref
    method: str
    cu_seqlens: str
    first_line: int
    last_line: int
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceLookup:
    """Where a method of an attention class looks up the attention function that it calls: see `codegen.analyze.grouped`."""

    owner: Ref
    method: str
    branch: Span
    """The branch of SDPA's function that upstream leaves out of graphs."""
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Where a method of a class has what a rule replaces: lines from the first place to the last."""

    owner: Ref
    method: str
    first_line: int
    last_line: int
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingBlock:
    """Where a forward makes its embeddings, `target`, where it isn't given them: see `codegen.analyze.embeddings`.

    `made_of` are the arguments that nothing else reads, `parts` the attributes of `self` that it calls, `recorded` the names of
    the classes whose outputs the model can record.
    """

    target: str
    made_of: tuple[str, ...]
    parts: tuple[str, ...]
    recorded: tuple[str, ...]
    place: Pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeReads:
    """Buffers of whole numbers, by name, and the methods of a class that compute sizes from them: see
    `codegen.analyze.size_buffers`."""

    names: tuple[str, ...]
    methods: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoice:
    """Where a forward leaves out layers at random in training: see `codegen.analyze.layer_drop`.

    `lists` are the attributes that hold the layers, `conditions` what is true of the module wherever it is done, as source text
    that reads `self` alone. `spans` are the branches.
    """

    lists: tuple[str, ...]
    conditions: tuple[str, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPositions:
    """What the attention masks are made of that a class makes, where that is known: of ranges, and besides of its argument
    `position_ids`, or of the first of four rows of it: see `codegen.analyze.positions`."""

    are_made: bool = False
    own: bool = False
    first_of_four: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A forward as declared, in the class of the MRO that defines it.

    `prologue_only` are the parameters that nothing but the prologue reads.
    """

    owner: Ref
    parameters: tuple[Parameter, ...]
    returns: str | None
    decorators: tuple[str, ...]
    shapes: tuple[ArgumentShape, ...]
    prologue: tuple[PrologueCall, ...]
    prologue_only: tuple[str, ...]
    packed: PackedSplit | None
    grouped: InterfaceLookup | None
    clamps: Pattern | None
    """Branches of this forward that clamp what overflowed: see `codegen.analyze.clamps`."""
    span: Span
    loop: Pattern | None = None
    """Another method that loops over values: see `codegen.analyze.loops`."""
    divisions: tuple[Pattern, ...] = ()
    """Other methods that divide sizes by a function of tensors: see `codegen.analyze.divisions`."""
    choice: LayerChoice | None = None
    graph_only: tuple[Pattern, ...] = ()
    """Branches in its reach that only a graph takes: see `codegen.analyze.graph_only`."""
    experts: Pattern | None = None
    """Where this forward loops over experts: see `codegen.analyze.experts`."""
    sizes: SizeReads | None = None
    truths: tuple[str, ...] = ()
    """Parameters that are only asked whether they hold anything: see `codegen.analyze.truths`."""
    asked: Pattern | None = None
    """Where this forward asks."""
    size_loops: tuple[Pattern, ...] = ()
    """Methods that call functions which loop over sizes: see `codegen.analyze.size_loops`."""
    looping: tuple[Pattern, ...] = ()
    """Those functions, and what they call."""
    embedding: EmbeddingBlock | None = None
    messages: tuple[Pattern, ...] = ()
    """Methods with checks whose messages have sizes in them: see `codegen.analyze.messages`."""
    ranges: tuple[Pattern, ...] = ()
    """Methods that make tensors of as many numbers as a size says: see `codegen.analyze.size_ranges`."""
    masks: MaskPositions | None = None
    """None where masks may be made of other positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFact:
    """A class of a modeling file. `init` names the class in its MRO whose `__init__` runs, `forward` likewise."""

    ref: Ref
    bases: tuple[str, ...]
    mro: tuple[Ref, ...]
    is_pretrained: bool
    init: Ref | None
    inherits_init: Ref | None
    """The class whose `__init__` that of `init` runs through `super()`, where it makes children too."""
    children: tuple[Child, ...]
    forward: Forward | None
    span: Span
    recorders: tuple[Pattern, ...] = ()
    """Methods that record hidden states or attentions: see `codegen.analyze.recorders`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFact:
    """A class that plays a role, and why: the chain of attributes from the entry down to it."""

    role: Role
    modality: Modality
    ref: Ref
    entry: Ref
    path: tuple[str, ...]
    reason: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """All that was seen of one model: `classes` holds every class that a generated package may have to subclass."""

    model: str
    file: str
    entries: tuple[Ref, ...]
    classes: tuple[ClassFact, ...]
    roles: tuple[RoleFact, ...]
    hazards: tuple[Hazard, ...]
    notes: tuple[tuple[Span, str], ...] = field(default=())

    @property
    def is_local(self) -> bool:
        """Whether the model is none of Transformers': its files are copied."""
        return self.file.startswith(".")

    def of(self, ref: Ref) -> ClassFact:
        for fact in self.classes:
            if fact.ref == ref:
                return fact
        raise KeyError(str(ref))

    def find(self, ref: Ref | None) -> ClassFact | None:
        return next((fact for fact in self.classes if fact.ref == ref), None)
