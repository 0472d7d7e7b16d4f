# SPDX-License-Identifier: Apache-2.0
"""Compiles cores: `torch.compile` with the settings under which one graph serves all sizes."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo.config
import torch.fx.experimental._config
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from .counting import tally
from .settings import Options

# What compiling raises where a core can't be captured. Errors from running what was compiled are others.
COMPILE_ERRORS = (TorchDynamoException, FailOnRecompileLimitHit, GuardOnDataDependentSymNode)

# How often Dynamo may compile one variant again because a guard failed.
VARIANT_LIMIT = 16
# The same where all instances of a layer class share the variant: each layer may need an entry of its own.
SHARED_LIMIT = 1024

# Torch 2.11's Inductor decides by the sizes at hand whether to pad a matrix product, and guards on the answer: a vision
# encoder compiled anew for small images, and again for larger ones after them (_inductor/fx_passes/pad_mm.py). So it is
# decided here: always where many rows meet odd widths, never where one row does, as in a decode step.
_PADDED: dict[str, Any] = {"force_shape_pad": True}
_UNPADDED: dict[str, Any] = {"shape_padding": False}

_IS_ISOLATING = {"isolate_recompiles", "recompile_limit"} <= inspect.signature(torch.compile).parameters.keys()

_dynamo = torch._dynamo.config
_shapes = torch.fx.experimental._config


class CountingBackend:
    """A `torch.compile` backend that counts what it is handed, and hands it on."""

    def __init__(self, tag: str, options: Options, *, is_padded: bool) -> None:
        self.graphs = 0
        self._tag = tag
        self._backend = _resolve(options, is_padded)

    def __call__(self, graph: GraphModule, example_inputs: list[torch.Tensor]) -> Callable[..., Any]:
        # Counted when it is done: Dynamo may stop the backend to trace once more.
        compiled: Callable[..., Any] = self._backend(graph, example_inputs)
        self.graphs += 1
        tally(self._tag).graphs += 1
        return compiled


class CompiledCore:
    """The compiled form of one variant of a core.

    Args:
        core: A plain function of a module and keyword arguments.
        tag: The region's compile tag.
        options: The backend and its mode.
        is_shared: Whether modules of one class call it in turns.
        is_padded: Whether matrix products are padded to widths that the hardware likes. Exact: the padding is zeros.
    """

    def __init__(
        self, core: Callable[..., Any], *, tag: str, options: Options, is_shared: bool, is_padded: bool = False
    ) -> None:
        self.backend = CountingBackend(tag, options, is_padded=is_padded)
        self._limit = SHARED_LIMIT if is_shared else VARIANT_LIMIT
        keywords: dict[str, Any] = (
            {"isolate_recompiles": True, "recompile_limit": self._limit} if _IS_ISOLATING else {}
        )
        self._compiled = torch.compile(core, fullgraph=True, dynamic=True, backend=self.backend, **keywords)

    def __call__(self, module: torch.nn.Module, arguments: dict[str, Any]) -> Any:
        """Run the core, and compile it where Dynamo has nothing that fits.

        Raises:
            COMPILE_ERRORS: It can't be compiled. Nothing ran then.
        """
        with _settings(self._limit):
            return self._compiled(module, **arguments)


@contextmanager
def _settings(limit: int) -> Iterator[None]:
    """Dynamo's settings for cores, in force for every call because any call may compile.

    - No duck shaping: two dimensions that happen to be equal in the first call aren't taken for one.
    - Guards on the hooks of submodules, which Dynamo leaves out by default: a hook added later takes effect.

    Settings are read and set one by one: `config.patch` takes several times as long. One that has its value already is
    left alone, so that calls in several threads don't restore each other's settings where these are process-wide.
    """
    changes: list[tuple[Any, str, Any]] = []
    try:
        if _shapes.use_duck_shape:
            changes.append((_shapes, "use_duck_shape", True))
            _shapes.use_duck_shape = False
        if _dynamo.skip_nnmodule_hook_guards:
            changes.append((_dynamo, "skip_nnmodule_hook_guards", True))
            _dynamo.skip_nnmodule_hook_guards = False
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


def _resolve(options: Options, is_padded: bool) -> Callable[..., Any]:
    if options.backend == "inductor":
        # What `torch.compile` itself makes of this name and a mode.
        wrapper: Callable[..., Any] = torch._TorchCompileInductorWrapper(  # type: ignore[no-untyped-call]
            options.mode, _PADDED if is_padded else _UNPADDED, True
        )
        return wrapper
    if isinstance(options.backend, str):
        from torch._dynamo.backends.registry import lookup_backend

        return lookup_backend(options.backend)
    return options.backend
