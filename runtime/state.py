# SPDX-License-Identifier: Apache-2.0
"""What a region's modules are and hold, compared before and after a call that ran uncompiled.

Some of upstream's modules change themselves where a call needs it: a table of positions is made larger, hooks are installed, a
module is exchanged. No graph can hold the call that does so, but those after it can be captured. So a capture that failed is tried
again where its modules aren't any more what they were when it failed.
"""

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from .memos import is_remembering

_PLAIN = (bool, int, float, str, torch.dtype, torch.device)
# Told by their entries; the rest of what every module has are hooks and the like, told by how many there are.
_TABLES = ("_parameters", "_buffers", "_modules")


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


def put_back_buffers(module: nn.Module, buffers: dict[str, torch.Tensor]) -> list[str]:
    """Put back the buffers that a graph exchanged for tensors of inference mode, which no later training could use: where
    upstream's code writes a buffer that it hasn't changed, a graph writes what it computes. Returns their names."""
    found = []
    for name, before in buffers.items():
        owner, _, attribute = name.rpartition(".")
        held = module.get_submodule(owner)._buffers
        now = held.get(attribute)
        if now is not None and now is not before and now.is_inference() and not before.is_inference():
            held[attribute] = before
            found.append(name)
    return found
