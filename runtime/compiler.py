# SPDX-License-Identifier: Apache-2.0
"""Compiles cores: `torch.compile` with the settings under which one graph serves all sizes."""

import builtins
import inspect
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch._dynamo.config
import torch.compiler.config
import torch.fx.experimental._config
from torch._dynamo.callback import CallbackArgs, CallbackTrigger, callback_handler
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from .caches import LAYER_INDEX
from .checkpoints import RUN_AS_CAPTURED, as_in_eager
from .constant_sizes import constant_sizes
from .counting import tally
from .graph_only import refuse
from .kernels import SETTINGS
from .positions import FINDS_PACKED
from .scopes import with_globals
from .settings import Options

# What compiling raises where a core can't be captured. Errors from running what was compiled are others.
COMPILE_ERRORS = (TorchDynamoException, FailOnRecompileLimitHit, GuardOnDataDependentSymNode)

# How often Dynamo may compile one variant again because a guard failed.
VARIANT_LIMIT = 16
# The same where all instances of a layer class share the variant: each layer may need an entry of its own.
SHARED_LIMIT = 1024

_IS_ISOLATING = {"isolate_recompiles", "recompile_limit"} <= inspect.signature(torch.compile).parameters.keys()

# Loggers stay silent in a graph, and don't break it. Transformers gives them methods of its own.
_LOGGING = frozenset(
    method
    for name in ("debug", "info", "warning", "error", "info_once", "warning_once", "warning_advice")
    if (method := getattr(logging.Logger, name, None)) is not None
)

_dynamo = torch._dynamo.config
_IGNORED = "ignore_logging_functions" if hasattr(_dynamo, "ignore_logging_functions") else "ignore_logger_methods"
_shapes = torch.fx.experimental._config
_sources = torch.compiler.config
_INDICES = rf".*\b{LAYER_INDEX}\b"

# Whether what is compiled now is compiled by `_settings`.
_in_force: ContextVar[bool] = ContextVar("vgen_in_force", default=False)
# Whether a core runs without settings, since something that was compiled probably fits.
_is_tried: ContextVar[bool] = ContextVar("vgen_is_tried", default=False)
# Whether the core that runs is for plain positions: see `positions`. Whatever another thread traces asks for itself.
_plain: ContextVar[bool] = ContextVar("vgen_plain", default=False)


class _Ignored(set[Any]):
    """Functions that are ignored while tracing, and that aren't listed: torch 2.11 writes its settings into a log as JSON, which
    functions can't be, and reports an error each time that something is compiled.

    Listed are, while a core for plain positions is traced, those of upstream's that look at them: other functions than loggers'
    are looked up in the list.

    Args:
        listed: Those of a user's own.
        others: Those that are asked for only by whether they are in the set.
    """

    def __init__(self, listed: Iterable[Any] = (), others: Iterable[Any] = ()) -> None:
        self._listed = tuple(listed)
        super().__init__(self._listed)
        self.update(others)

    def __iter__(self) -> Iterator[Any]:
        return iter((*self._listed, *FINDS_PACKED) if _plain.get() else self._listed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._listed, tuple(super().__iter__()))


class _NotInForceError(TorchDynamoException):
    """Dynamo compiles without the settings for cores."""


def _refuse_to_trace(begun: CallbackArgs) -> None:
    """Called by Dynamo before it traces. Without the settings that may take minutes: more sizes are symbols then."""
    if _is_tried.get() and begun.callback_trigger is CallbackTrigger.DYNAMO:
        raise _NotInForceError


class CountingBackend:
    """A `torch.compile` backend that counts what it is handed, and hands it on.

    Attributes:
        graphs: How many graphs were compiled.
        constants: The sizes that the last one holds for alone: see `constant_sizes`.
        has_checks: One of them checks values while it runs.
    """

    def __init__(
        self, tag: str, options: Options, *, is_padded: bool, is_shared: bool = False, graph_only: Sequence[str] = ()
    ) -> None:
        self.graphs = 0
        self.constants: dict[str, dict[int, int]] = {}
        self.has_checks = False
        self._tag = tag
        self._backend = _resolve(options, is_padded, is_shared)
        self._graph_only = graph_only

    def __call__(self, graph: GraphModule, example_inputs: list[torch.Tensor]) -> Callable[..., Any]:
        if not _in_force.get():
            raise _NotInForceError
        refuse(graph, self._graph_only)
        # Counted when it is done: Dynamo may stop the backend to trace once more.
        compiled: Callable[..., Any] = self._backend(graph, example_inputs)
        self.constants = constant_sizes(graph)
        self.has_checks = self.has_checks or _has_checks(graph)
        self.graphs += 1
        tally(self._tag).graphs += 1
        return compiled


def _has_checks(graph: GraphModule) -> bool:
    check = torch.ops.aten._assert_scalar.default
    graphs = (part.graph for part in graph.modules() if isinstance(part, GraphModule))
    return any(node.target is check for each in graphs for node in each.nodes)


class CompiledCore:
    """The compiled form of one variant of a core.

    Attributes:
        pinned: Sizes that the contract has as dynamic, and that the graph holds for alone, by argument and dimension.

    Args:
        core: A plain function of a module and keyword arguments.
        tag: The region's compile tag.
        options: The backend and its mode.
        is_shared: Whether modules of one class call it in turns.
        is_padded: Whether matrix products are padded to widths that the hardware likes. Exact: the padding is zeros.
        has_fixed_ints: Whether every Python int among the arguments belongs to the variant.
        has_fixed_floats: Whether Python floats are constants of the graph, those of modules too.
        graph_only: Places in upstream's code that no graph may have gone through: see `graph_only.refuse`.
        is_plain: Whether the positions of its calls are plain: see `positions.are_plain`.
    """

    def __init__(
        self,
        core: Callable[..., Any],
        *,
        tag: str,
        options: Options,
        is_shared: bool,
        is_padded: bool = False,
        has_fixed_ints: bool = False,
        has_fixed_floats: bool = True,
        graph_only: Sequence[str] = (),
        is_plain: bool = False,
    ) -> None:
        self.backend = CountingBackend(tag, options, is_padded=is_padded, is_shared=is_shared, graph_only=graph_only)
        self.pinned: dict[tuple[str, int], int] = {}
        self._states: set[Hashable] = set()
        self._limit = SHARED_LIMIT if is_shared else VARIANT_LIMIT
        self._is_shared = is_shared
        self._has_fixed_ints = has_fixed_ints
        self._has_fixed_floats = has_fixed_floats
        self._is_plain = is_plain
        keywords: dict[str, Any] = (
            {"isolate_recompiles": True, "recompile_limit": self._limit} if _IS_ISOLATING else {}
        )
        self._compiled = torch.compile(core, fullgraph=True, dynamic=True, backend=self.backend, **keywords)

    def __call__(self, module: torch.nn.Module, arguments: dict[str, Any]) -> Any:
        """Run the core, and compile it where Dynamo has nothing that fits.

        Raises:
            COMPILE_ERRORS: It can't be compiled. Nothing ran then.
        """
        if self.backend.graphs:
            # Most calls compile nothing: they go without settings, which take longer to make than guards to check. Where Dynamo
            # has nothing that fits, its attempt fails before it begins, or in the backend while another thread compiles, and
            # nothing ran.
            if _refuse_to_trace not in callback_handler.start_callbacks:
                # The first call, or `torch._dynamo.reset` forgot it.
                callback_handler.register_start_callback(_refuse_to_trace)
            token = _is_tried.set(True)
            try:
                return self._compiled(module, **arguments)
            except COMPILE_ERRORS:
                pass
            finally:
                _is_tried.reset(token)
        with _settings(
            self._limit,
            is_shared=self._is_shared,
            has_fixed_ints=self._has_fixed_ints,
            has_fixed_floats=self._has_fixed_floats,
            is_plain=self._is_plain,
        ):
            return self._compiled(module, **arguments)

    def pin(self, dynamic: Iterable[tuple[str, int]]) -> None:
        """Note which of these dimensions, by argument and index, have one size in what was compiled."""
        for name, dim in dynamic:
            for source in (f"L['{name}']", f"L['kwargs']['{name}']"):
                size = self.backend.constants.get(source, {}).get(dim)
                if size is not None:
                    self.pinned[name, dim] = size

    def is_for_other_states(self, kind: Hashable) -> bool:
        """Note what kind of states (see `held_states.kinds`) the last graph was made for. Returns whether all graphs before it
        were for other kinds."""
        is_other = bool(self._states) and kind not in self._states
        self._states.add(kind)
        return is_other

    def is_for(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call has the sizes that are pinned."""
        return all(arguments[name].shape[dim] == size for (name, dim), size in self.pinned.items())


def ahead_of_time(
    core: Any,
    module: torch.nn.Module,
    arguments: dict[str, Any],
    *,
    options: Options,
    is_shared: bool,
    is_padded: bool,
    has_fixed_ints: bool,
    graph_only: Sequence[str],
    is_plain: bool,
    keeps: Callable[[Any], bool],
) -> Any:
    """Compile a core for calls like this one, in a form that can be saved. Nothing runs.

    Args:
        core: A plain function of a module and keyword arguments.
        module: Its module.
        arguments: Its arguments by name.
        options: The mode; the backend is Inductor.
        is_shared: See `CompiledCore`.
        is_padded: Likewise.
        has_fixed_ints: Likewise.
        graph_only: Likewise.
        is_plain: Likewise.
        keeps: Of one of Dynamo's guards, whether it stays in force.

    Returns:
        PyTorch's AOTCompiledFunction.
    """
    from .inductor import Inductor

    backend = Inductor(
        options.mode,
        has_gradients=False,
        is_padded=is_padded,
        is_launched=is_shared,
        settings=SETTINGS,
        graph_only=graph_only,
    )
    guards: dict[str, Any] = {"guard_filter_fn": lambda entries: [keeps(each) for each in entries]}
    changes: dict[str, Any] = {
        "enable_aot_compile": True,
        # Where `torch.compile` would find a float constant at its second look, this API gives up.
        "specialize_float": True,
        # Guards are rebuilt where the artifact is loaded, and there may be no C++ compiler.
        "enable_cpp_symbolic_shape_guards": False,
    }
    settings = _settings(
        VARIANT_LIMIT, is_shared=is_shared, has_fixed_ints=has_fixed_ints, has_fixed_floats=True, is_plain=is_plain
    )
    with settings, _dynamo.patch(changes):
        # Torch 2.11 looks for what a form refers to among its globals alone, built-in names included.
        function = with_globals(core, vars(builtins) | core.__globals__)
        compiled: Any = torch.compile(function, fullgraph=True, dynamic=True, backend=backend, options=guards)
        return compiled.aot_compile(((module,), arguments))


@contextmanager
def _settings(
    limit: int, *, is_shared: bool, has_fixed_ints: bool, has_fixed_floats: bool, is_plain: bool
) -> Iterator[None]:
    """Dynamo's settings for cores, without which the backend takes no graph.

    - No duck shaping: two dimensions that happen to be equal in the first call aren't taken for one.
    - Guards on the hooks of submodules, which Dynamo leaves out by default: a hook added later takes effect.
    - What upstream logs while it is traced is left out, and so is its look at positions that are known to be plain.
    - Recurrent layers, which Dynamo leaves out by default, are captured, as the operators that they are.
    - Floats are constants: those of a model's own, such as an attention's scale, don't change, and those among arguments
      belong to a variant. As inputs, which they are by default with dynamic shapes, those that are no factor of a tensor
      make Inductor give up halfway, and Dynamo trace everything once more. Layers that share what is compiled, and differ in
      a float of their own, have them as inputs nevertheless (not `has_fixed_floats`).
    - Layers that share what is compiled (`is_shared`) have their index as an input: a graph holds for a range of it, or for
      one where it asks.
    - Ints that a variant tells apart (`has_fixed_ints`), such as a pair of sizes, are constants.

    Settings are read and set one by one: `config.patch` takes several times as long. One that has its value already is
    left alone, so that calls in several threads don't restore each other's settings where these are process-wide.
    """
    changes: list[tuple[Any, str, Any]] = []
    tokens = [(_plain, _plain.set(is_plain)), (_in_force, _in_force.set(True))]
    try:
        if _shapes.use_duck_shape:
            changes.append((_shapes, "use_duck_shape", True))
            _shapes.use_duck_shape = False
        if _dynamo.skip_nnmodule_hook_guards:
            changes.append((_dynamo, "skip_nnmodule_hook_guards", True))
            _dynamo.skip_nnmodule_hook_guards = False
        ignored = getattr(_dynamo, _IGNORED)
        if not ignored >= _LOGGING or (is_plain and not isinstance(ignored, _Ignored)):
            changes.append((_dynamo, _IGNORED, ignored))
            setattr(_dynamo, _IGNORED, _Ignored(ignored, _LOGGING))
        if not _dynamo.allow_rnn:
            changes.append((_dynamo, "allow_rnn", False))
            _dynamo.allow_rnn = True
        if is_shared and _INDICES not in _sources.dynamic_sources:
            changes.append((_sources, "dynamic_sources", _sources.dynamic_sources))
            _sources.dynamic_sources = ",".join(filter(None, (_sources.dynamic_sources, _INDICES)))
        if has_fixed_floats and not _dynamo.specialize_float:
            changes.append((_dynamo, "specialize_float", False))
            _dynamo.specialize_float = True
        if has_fixed_ints and not _dynamo.specialize_int:
            changes.append((_dynamo, "specialize_int", False))
            _dynamo.specialize_int = True
        if not _IS_ISOLATING:
            # All instances and variants of a class count against the limit together.
            for name in ("recompile_limit", "accumulated_recompile_limit"):
                current = getattr(_dynamo, name)
                if current < SHARED_LIMIT:
                    changes.append((_dynamo, name, current))
                    setattr(_dynamo, name, SHARED_LIMIT)
        elif _dynamo.accumulated_recompile_limit < limit:
            changes.append((_dynamo, "accumulated_recompile_limit", _dynamo.accumulated_recompile_limit))
            _dynamo.accumulated_recompile_limit = limit
        yield
    finally:
        for config, name, value in changes:
            setattr(config, name, value)
        for variable, token in tokens:
            variable.reset(token)


def _resolve(options: Options, is_padded: bool, is_shared: bool) -> Callable[..., Any]:
    if options.backend == "inductor":
        # It takes long to import, and loaded artifacts need none of it.
        from .inductor import Inductor

        return Inductor(
            options.mode, has_gradients=torch.is_grad_enabled(), is_padded=is_padded, is_launched=is_shared
        )
    if isinstance(options.backend, str):
        from torch._dynamo.backends.registry import lookup_backend

        backend: Callable[..., Any] = lookup_backend(options.backend)
        return as_in_eager(backend) if options.backend in RUN_AS_CAPTURED else backend
    return options.backend


def has_cuda_graphs(options: Options) -> bool:
    """Whether the backend makes CUDA graphs of its own."""
    return options.mode in ("reduce-overhead", "max-autotune")
