# SPDX-License-Identifier: Apache-2.0
"""The contract of a core: which calls share a compiled form, and which can't be compiled at all.

In this version Dynamo's guards stay in force behind it: the contract decides the variant, which sizes are static, and
what falls back; a call that it lets through is still guarded by Dynamo.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from .caches import key_value_states
from .describe import UndescribableError, describe, kind_of, mode

# Discrete parts of a call, in a form that can be a dictionary key. Its layout is an implementation detail.
Variant = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Dims:
    """A tensor argument: for each dimension a symbolic name, a static size, or None for static of any size."""

    dims: tuple[str | int | None, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """A Python int that may change from call to call."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A call that the contract doesn't describe: why, in one line. The line doesn't depend on sizes, so that calls
    that break the contract in one way count as one reason."""

    reason: str


def tensor(*dims: str | int | None) -> Dims:
    """An argument that is a tensor (or None).

    Args:
        *dims: One entry for each dimension. A name: dynamic; dimensions of one name are expected to have the same size
            in a call, or size 1, and calls where they haven't are another variant. An int: expected to be this size.
            None: any size. Another size of either is another variant.

    A tensor with another number of dimensions is accepted: all of its dimensions are dynamic then.
    """
    return Dims(dims)


def size() -> Size:
    """An argument that is a Python int which may change from call to call (or None)."""
    return Size()


class Contract:
    """What a core accepts, by argument name. Arguments that aren't named here are described by the same rules, with
    all dimensions of their tensors dynamic."""

    def __init__(self, **arguments: Dims | Size) -> None:
        self._dims = {name: each.dims for name, each in arguments.items() if isinstance(each, Dims)}
        self._sizes = frozenset(name for name, each in arguments.items() if isinstance(each, Size))

    @property
    def segment_bounds(self) -> dict[str, str]:
        """Of each argument that bounds segment lengths (`max_window_seqlen`), the one that has the segments' ends
        (`cu_window_seqlens`): upstream's names for the two."""
        pairs = {name: f"cu_{name.removeprefix('max_')}s" for name in sorted(self._sizes) if name.startswith("max_")}
        return {name: ends for name, ends in pairs.items() if ends in self._dims}

    @property
    def has_sizes(self) -> bool:
        """Whether an argument is a Python int that may change: every other is a part of the variant."""
        return bool(self._sizes)

    @property
    def arguments(self) -> dict[str, Dims | Size]:
        """The arguments as they were given, sizes last."""
        return {name: Dims(dims) for name, dims in self._dims.items()} | {name: Size() for name in sorted(self._sizes)}

    def variant(self, module: nn.Module, arguments: Mapping[str, Any]) -> Variant | Violation:
        """The variant that a call belongs to.

        It has: train or eval; grad mode, inference mode and autocast; and for each argument whether it is None, its
        Python value, or the kind (see `kind_of`), number of dimensions and static sizes of the tensor, and of each dynamic
        dimension whether its size is 0, 1 or more (PyTorch compiles these apart), and which dimensions of one name
        aren't equal; for tuples, lists, dicts and caches their structure and those of their elements.

        Args:
            module: The region's module.
            arguments: The core's arguments by name.
        """
        parts: list[Hashable] = [module.training, mode()]
        named: dict[str, tuple[int, str]] = {}
        for name, value in arguments.items():
            parts.append(name)
            if value is None:
                parts.append(None)
            elif isinstance(value, torch.Tensor):
                dims = self._dims.get(name)
                shape = value.shape
                if dims is None or len(dims) != len(shape):
                    parts.append(describe(value))
                    continue
                bits = []
                for dim, length in zip(dims, shape, strict=True):
                    if type(dim) is str:
                        if length != 1:
                            first, other = named.setdefault(dim, (length, name))
                            if first != length:
                                # The name is only what documentation says. A graph for equal sizes isn't used here.
                                parts.append((dim, "of", name, "differs from that of", other))
                        bits.append(length if length < 2 else -1)
                    else:
                        bits.append(length)
                parts.append((*kind_of(value), *bits))
            elif name in self._sizes and type(value) is int:
                parts.append(("size", value if 0 <= value < 2 else -1))
            else:
                try:
                    parts.append(describe(value))
                except UndescribableError as error:
                    return Violation(f"{name} has {error}, which the contract can't describe")
        return tuple(parts)

    def dynamic(self, arguments: Mapping[str, Any]) -> list[tuple[str, int]]:
        """The dimensions of tensors among the arguments that a graph should be able to take in any size, by argument and
        index. Of size 0 and 1 each has graphs of its own."""
        found = []
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor):
                dims = self._dims.get(name)
                named = dims if dims is not None and len(dims) == value.ndim else ("",) * value.ndim
                found += [
                    (name, index) for index, dim in enumerate(named) if isinstance(dim, str) and value.shape[index] > 1
                ]
        return found

    def mark_static(self, arguments: Mapping[str, Any], more: Iterable[tuple[str, int]] = ()) -> None:
        """Tell Dynamo which dimensions are static, before it compiles a variant.

        Of a cache those are the number of heads and their sizes: (batch, heads, kv_length, head_dim).

        Args:
            arguments: The core's arguments by name.
            more: Further dimensions that are, by argument and index: see `Limits.fixed`.
        """
        for name, value in arguments.items():
            if isinstance(value, Cache):
                # Where attention runs in a kernel of cuDNN, nothing else on Dynamo's way fixes them.
                for states in key_value_states(value):
                    if states.ndim == 4:
                        torch._dynamo.mark_static(states, 1)
                        torch._dynamo.mark_static(states, 3)
            dims = self._dims.get(name)
            if dims is None or not isinstance(value, torch.Tensor) or value.ndim != len(dims):
                continue
            for index, dim in enumerate(dims):
                if not isinstance(dim, str):
                    torch._dynamo.mark_static(value, index)
        for name, index in more:
            torch._dynamo.mark_static(arguments[name], index)
