# SPDX-License-Identifier: Apache-2.0
"""Transformers' recording of hidden states and attentions, where a region meets it.

`capture_outputs` (transformers/utils/output_capturing.py) decorates the forward of a model that records. It installs hooks on
the modules below, once, and each hook adds its module's output to what the innermost running recorder collects.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

_UPSTREAM = "transformers.utils.output_capturing"
_INSTALLED = "_output_capturing_hooks_installed"
"""Upstream's mark on a model that has its hooks."""


class Recording:
    """What one region's module has to do with recording.

    Attributes:
        records: Its own forward records: what its graph collects, its graph returns.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.records = _captures_outputs(type(module))
        found = ((part, getattr(part, "_can_record_outputs", None)) for part in module.modules())
        self._waiting: list[tuple[Any, tuple[str, ...]]] = [
            (part, tuple({f"output_{name}": None for name in (*names, "attentions")}))
            for part, names in found
            if names and _captures_outputs(type(part))
        ]
        self._hooks = [part._forward_hooks for part in module.modules() if part is not module]

    def install(self, arguments: dict[str, Any]) -> None:
        """Install the hooks before a graph needs them: that takes a lock, which no graph can hold.

        `capture_outputs` looks at the same arguments and config attributes. Models inside of the module record for
        themselves: what they are asked for is what the module is asked for. A model that doesn't record gets no hooks, as
        it would install its children's, too, and theirs would be there twice.
        """
        for waiting in list(self._waiting):
            part, flags = waiting
            if part.__dict__.get(_INSTALLED):
                self._waiting.remove(waiting)
            elif any(arguments[flag] if flag in arguments else getattr(part.config, flag, False) for flag in flags):
                _install(part)

    @property
    def is_hooked(self) -> bool:
        """Whether modules below have hooks, of which some may be for a recorder around the region."""
        return not self.records and any(self._hooks)

    @property
    def hooks(self) -> tuple[int, ...]:
        """How many hooks each module below has: layers that differ in them have different graphs."""
        return tuple(map(len, self._hooks))

    def reason(self) -> str | None:
        """Why a call can't run compiled: a recorder around the region collects what modules below give."""
        collector = _collector()
        collected = collector.get() if collector is not None else None
        wanted = sorted(_keys(self._module) & set(collected)) if collected else ()
        return f"a model around it records {', '.join(wanted)} inside of it" if wanted else None


def _install(model: nn.Module) -> None:
    """Install what upstream would, but nothing for a second time in models inside that have their hooks.

    Upstream does, and each output would be collected twice there: such a model may have been called on its own before.
    """
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    hooked = [each for each in model.modules() if each is not model and each.__dict__.get(_INSTALLED)]
    before = {part: set(part._forward_hooks) for each in hooked for part in each.modules()}
    maybe_install_capturing_hooks(model)
    for part, hooks in before.items():
        for key in set(part._forward_hooks) - hooks:
            del part._forward_hooks[key]


def unrecorded(core: Callable[..., Any]) -> Callable[..., Any]:
    """The same core, in a graph of its own, where nothing is collected.

    Dynamo can't ask who collects, once there are hooks. So it is told, in the way in which recorders inside of a graph tell it.
    """
    collector = _collector()
    if collector is None:
        return core

    def traced(module: Any, **kwargs: Any) -> Any:
        token = collector.set({})
        try:
            return core(module, **kwargs)
        finally:
            collector.reset(token)

    return traced


def within_recorder(method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a method that records, inside of a forward that does: what that one collects goes on afterwards.

    In eager upstream sees to it. In a graph `CompileableContextVar.reset` forgets what was collected around it.
    """
    collector = _collector()
    around = None
    if collector is not None and torch.compiler.is_dynamo_compiling() and getattr(collector, "compiling", False):
        around = collector.get()
    result = method(*args, **kwargs)
    if around is not None:
        collector.set(around)
    return result


def _collector() -> Any:
    """Upstream's variable for what is collected, None where nothing has recorded in this process, or this release can't."""
    return getattr(sys.modules.get(_UPSTREAM), "_active_collector", None)


def _captures_outputs(cls: type) -> bool:
    """Whether the forward of a class, or of one that it subclasses, has the decorator `capture_outputs`."""
    for each in cls.__mro__:
        function = vars(each).get("forward")
        while function is not None:
            if _is_of(function, "capture_outputs"):
                return True
            function = getattr(function, "__wrapped__", None)
    return False


def _keys(module: nn.Module) -> set[str]:
    """What the recording hooks below a module record: "attentions", say."""
    return {
        inspect.getclosurevars(hook).nonlocals["key"]
        for part in module.modules()
        if part is not module
        for hook in _recorders(part)
    }


def _recorders(module: nn.Module) -> Iterator[Callable[..., Any]]:
    for hook in module._forward_hooks.values():
        if _is_of(hook, "install_output_capuring_hook"):
            yield hook


def _is_of(function: Any, maker: str) -> bool:
    """Whether a function was made inside another one of upstream's file."""
    code = getattr(function, "__code__", None)
    return (
        code is not None and code.co_qualname.startswith(f"{maker}.") and function.__globals__["__name__"] == _UPSTREAM
    )
