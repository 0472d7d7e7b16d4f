# SPDX-License-Identifier: Apache-2.0
"""What one instance of a region compiled, and what tells layers apart that share it."""

import weakref
from collections import Counter
from collections.abc import Hashable
from typing import Any, Self

import torch

from .artifact import Form
from .compiler import CompiledCore
from .cuda_graphs import GraphedCore, GraphStore
from .expert_loops import ExpertLoop
from .forms import Forms
from .held_states import HeldStates
from .limits import Limits
from .memos import Made, Memos
from .prologue import Prologues
from .recording import Recording
from .size_buffers import SizeReader

# More variants than any use of a model needs: beyond them, an argument that should be dynamic isn't.
MAX_VARIANTS = 64
# How often one instance tries a variant again that couldn't be captured, where its modules changed in that call.
MAX_RETRIES = 2


class Variants:
    """What one instance compiled, by variant. A copy of the instance starts without: it compiles for itself."""

    def __init__(self) -> None:
        # The instance, once it was called.
        self.owner: weakref.ref[Any] | None = None
        self.cores: dict[Hashable, CompiledCore] = {}
        self.graphs = GraphStore()
        self.failures: dict[Hashable, str] = {}
        # The floats of the layer that came first, by variant: see `are_first_floats`.
        self.first_floats: dict[Hashable, Hashable] = {}
        # How often this instance tried again, by variant.
        self.retries: Counter[Hashable] = Counter()
        self.forms = Forms()
        self.runners: dict[CompiledCore | Form, CompiledCore | Form | GraphedCore] = {}
        # What is derived from the class and the config, once.
        self.recording: Recording | None = None
        self.limits: Limits | None = None
        self.graph_only: tuple[str, ...] = ()
        self.memos: Memos | None = None
        self.made: Made | None = None
        self.held: HeldStates | None = None
        self.sizes: SizeReader | None = None
        self.structure: Hashable = None
        self.floats: tuple[tuple[str, str, float], ...] | None = None
        self.layer: int | None = None
        self.is_layer_known = False
        self.rope: str | None = None
        self.is_rope_known = False
        self.is_aligned = False
        self.prologues = Prologues()

    def look_again(self) -> None:
        """Forget what was derived from the modules, which have changed. What they had yet to make still tells variants apart."""
        self.recording = None
        self.memos = None
        self.held = None
        self.runners.clear()
        self.structure = None
        self.floats = None

    def states_of(self, module: Any) -> HeldStates:
        """The states in the instance that this belongs to, found once."""
        if self.held is None:
            self.held = HeldStates(module)
        return self.held

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


def own_variants(module: Any) -> Variants:
    """What an instance compiled. A shallow copy has that of its original at first: it starts without here."""
    own: Variants = module.__dict__["_vgen_variants"]
    if own.owner is None or own.owner() is not module:
        if own.owner is not None:
            own = module.__dict__["_vgen_variants"] = Variants()
        own.owner = weakref.ref(module)
    return own


def structure_of(module: Any) -> Hashable:
    """What tells the layers of one class apart where they share what they compile: the shapes of their weights, the classes of
    their configs, their flags, as of a layer that attends in windows, and what operators know of their experts."""
    own: Variants = module.__dict__["_vgen_variants"]
    if own.structure is None:
        shapes = ((name, tuple(each.shape)) for name, each in module.named_parameters())
        flags = (
            (path, name, value)
            for path, part in module.named_modules()
            for name, value in vars(part).items()
            if isinstance(value, bool) and name not in ("training", "gradient_checkpointing") and name[0] != "_"
        )
        configs = {type(part.config).__qualname__: None for part in module.modules() if hasattr(part, "config")}
        experts = (part.likeness for part in module.modules() if isinstance(part, ExpertLoop))
        own.structure = (*shapes, *flags, *configs, *experts)
    return own.structure


def are_first_floats(shared: Variants, variant: Hashable, module: Any) -> bool:
    """Whether a layer has the floats, such as an epsilon, of the one that came first of those that share a variant.

    These are constants in a graph: as inputs, those that are no factor of a tensor make Dynamo trace everything twice. Layers
    that differ in one, such as a rate that grows with depth, share a graph that has floats as inputs.
    """
    own: Variants = module.__dict__["_vgen_variants"]
    if own.floats is None:
        own.floats = tuple(
            (path, name, value)
            for path, part in module.named_modules()
            for name, value in vars(part).items()
            if isinstance(value, float)
        )
    return shared.first_floats.setdefault(variant, own.floats) == own.floats


def likeness(module: Any, recording: Recording, arguments: dict[str, Any]) -> Hashable:
    """What else has to be alike where layers share what they compile: hooks on what is inside, and which arguments are views of
    other tensors, in which dimensions expanded, since Dynamo guards on sizes and strides of these. The first layer is often given
    a view and the others not."""
    views = (
        (name, _expanded(value))
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor) and value._is_view()
    )
    return structure_of(module), recording.hooks, tuple(views)


def _expanded(value: torch.Tensor) -> tuple[bool, ...]:
    """For each dimension whether all of it is one element."""
    return tuple(not stride and size > 1 for size, stride in zip(value.shape, value.stride(), strict=True))
