# SPDX-License-Identifier: Apache-2.0
"""What is done to a region's modules once, before the first graph is made of them: nothing that a call could notice."""

from contextlib import suppress
from functools import cache, cached_property
from types import FunctionType
from typing import Any

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .memos import stored

# What `nn.Buffer` sets on a tensor, for the assignment that registers it.
_MARKS = ("_is_buffer", "persistent")


def prepare(module: nn.Module) -> None:
    """Do to a module and its parts what no graph can do by itself.

    Args:
        module: A region's module.
    """
    for part in module.modules():
        _compute_cached(part)
        _unmark(part)


def _compute_cached(part: Any) -> None:
    """Compute the cached properties of a module, and of the objects of its modeling file that it holds: Python 3.11 takes a lock
    for it, which no graph can."""
    files = {each.__module__ for each in type(part).__mro__}
    held = (value for value in vars(part).values() if type(value).__module__ in files)
    for owner in (part, *held):
        cls: Any = type(owner)
        for name in _cached_properties(cls):
            # What raises here raises where upstream's code reads it, if it does.
            with suppress(Exception):
                getattr(owner, name)


@cache
def _cached_properties(cls: Any) -> tuple[str, ...]:
    return tuple(
        name for each in cls.__mro__ for name, value in vars(each).items() if isinstance(value, cached_property)
    )


def _unmark(part: nn.Module) -> None:
    """Make plain tensors of the buffers that a module's own methods set: `self.table = self.table.to(device)`.

    No graph can set a buffer to a tensor that `nn.Buffer` marked. Registered, a tensor doesn't need the mark: a module knows by
    itself which of its buffers aren't saved. The tensors stay where they are.
    """
    cls: Any = type(part)
    for name in set_by(cls) & part._buffers.keys():
        buffer = part._buffers[name]
        is_saved = name not in part._non_persistent_buffers_set
        if buffer is not None and getattr(buffer, "persistent", None) is is_saved:
            for mark in _MARKS:
                buffer.__dict__.pop(mark, None)


@cache
def set_by(cls: Any) -> frozenset[str]:
    """The attributes that methods of a class set, its constructors and what all modules and models have left out. So is what
    decorators of other files set, as upstream's does for the time of a call."""
    found: set[str] = set()
    for base in cls.__mro__:
        if base not in PreTrainedModel.__mro__ and not base.__module__.startswith("torch."):
            for name, function in vars(base).items():
                while name not in ("__init__", "_init_weights") and isinstance(function, FunctionType):
                    if function.__globals__.get("__name__") == base.__module__:
                        found |= stored(function)
                    function = getattr(function, "__wrapped__", None)
    return frozenset(found)
