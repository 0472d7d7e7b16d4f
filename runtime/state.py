# SPDX-License-Identifier: Apache-2.0
"""What a region's modules are and hold, compared before and after a call that ran uncompiled.

Some of upstream's modules change themselves where a call needs it: a table of positions is made larger, hooks are installed, a
module is exchanged. No graph can hold the call that does so, but those after it can be captured. So a capture that failed is tried
again where its modules aren't any more what they were when it failed.
"""

from collections.abc import Hashable, Iterator
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from .memos import is_remembering, stored

_PLAIN = (bool, int, float, str, torch.dtype, torch.device)
# Told by their entries; the rest of what every module has are hooks and the like, told by how many there are.
_TABLES = ("_parameters", "_buffers", "_modules")
# What `nn.Buffer` sets on a tensor, for the assignment that registers it.
_MARKS = ("_is_buffer", "persistent")


def outline(module: nn.Module) -> Hashable:
    """What a module and its parts are, but for the values of tensors: classes, names, sizes, dtypes, devices, hooks, and attributes.

    Equal before and after a call that changed nothing which a graph is made for. What is remembered of one call for the next
    (see `memos`) doesn't count, as no graph reads it. Holds no tensors.

    Args:
        module: A region's module.
    """
    return tuple(_part(part) for part in module.modules())


def _part(part: nn.Module) -> Hashable:
    held = vars(part)
    tables = [(name, _value(each)) for table in _TABLES for name, each in held[table].items()]
    if is_remembering(part):
        return type(part), *tables
    others = (
        (name, _value(each)) for name, each in held.items() if name not in _TABLES and not name.startswith("_vgen")
    )
    return type(part), *tables, *others


def _value(value: Any) -> Hashable:
    if value is None or type(value) in _PLAIN:
        return type(value), value
    if isinstance(value, torch.Tensor):
        return type(value), value.shape, value.dtype, value.device, value.requires_grad, value.is_inference()
    if isinstance(value, dict | list | tuple | set):
        return type(value), len(value)
    # Of other objects, what they hold by now: a cached property is there once it was read.
    held = () if isinstance(value, nn.Module) else tuple(getattr(value, "__dict__", ()))
    return type(value), held


class Held:
    """The tensors and modules that a module and its parts hold before a capture, which puts none of its own there if it works.

    Args:
        module: A region's module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._before = [(table, table.copy()) for part in module.modules() for table in _tables(part)]

    def put_back(self) -> None:
        """Put back what a failed capture exchanged for tensors without values (`FakeTensor`), which no call could use. What else
        changed stays: another thread may have done it."""
        for table, before in self._before:
            for name in [name for name, value in table.items() if isinstance(value, FakeTensor)]:
                if name in before:
                    table[name] = before[name]
                else:
                    del table[name]


def _tables(part: nn.Module) -> Iterator[dict[str, Any]]:
    yield part.__dict__
    yield from (part.__dict__[name] for name in _TABLES)


def unmark(module: nn.Module) -> None:
    """Make plain tensors of the buffers that the methods of a module or its parts set: `self.table = self.table.to(device)`.

    No graph can set a buffer to a tensor that `nn.Buffer` marked. Registered, a tensor doesn't need the mark: a module knows by
    itself which of its buffers aren't saved. The tensors stay where they are.

    Args:
        module: A region's module.
    """
    for part in module.modules():
        for name in _set_by(type(part)) & part._buffers.keys():
            buffer = part._buffers[name]
            is_saved = name not in part._non_persistent_buffers_set
            if buffer is not None and getattr(buffer, "persistent", None) is is_saved:
                for mark in _MARKS:
                    buffer.__dict__.pop(mark, None)


@cache
def _set_by(cls: type) -> frozenset[str]:
    """The attributes that methods of a class set, its constructors and those of all modules left out."""
    found: set[str] = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("torch."):
            for name, function in vars(base).items():
                while name != "__init__" and isinstance(function, FunctionType):
                    found |= stored(function)
                    function = getattr(function, "__wrapped__", None)
    return frozenset(found)
