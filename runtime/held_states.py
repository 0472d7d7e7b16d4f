# SPDX-License-Identifier: Apache-2.0
"""States that upstream's modules hold from one call to the next, as plain attributes, such as those of a recurrence, or whether
weights were rescaled.

They are arguments in all but name: a graph is made for a state's kind as it is for an argument's, and another kind is another
variant. Which of them a graph reads is known by what it is guarded by, not from the source: one that is written before it is read
may be of any kind. So a kind counts as a variant when it took a graph, and a call isn't described before.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import nn

from .describe import describe
from .memos import is_remembering
from .preparing import set_by


class HeldStates:
    """The states in one module and its parts.

    An attribute is one where it is None, a tensor or a flag, and any of the parts' methods sets it on whatever object. What is
    forgotten around each graph (see `memos`) isn't.

    Args:
        module: A region's module.
    """

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        classes: set[Any] = set(map(type, parts))
        names = frozenset[str]().union(*map(set_by, classes))
        self._places: list[tuple[dict[str, Any], str]] = [
            (held, name)
            for held in (vars(part) for part in parts if not is_remembering(part))
            for name in sorted(names & held.keys())
            if held[name] is None or isinstance(held[name], bool | torch.Tensor)
        ]

    @property
    def is_empty(self) -> bool:
        """Whether the modules hold no such attributes, whatever is in them."""
        return not self._places

    def now(self) -> list[Any]:
        """What the modules hold now, in the order of the modules."""
        return [held.get(name) for held, name in self._places]

    def are(self, states: Sequence[Any]) -> bool:
        """Whether the modules hold the very objects that they held when `now` returned this."""
        return all(map(is_, self.now(), states))

    def put_back(self, states: Sequence[Any]) -> None:
        """Let the modules hold again what they held when `now` returned this."""
        for (held, name), state in zip(self._places, states, strict=True):
            if held.get(name) is not state:
                held[name] = state


def kinds(states: Iterable[Any], arguments: Mapping[str, Any], dynamic: Iterable[tuple[str, int]]) -> Hashable:
    """What a graph can be made for in states, but for their sizes.

    Args:
        states: What `HeldStates.now` returned before the call.
        arguments: The core's arguments by name.
        dynamic: Their dimensions that may change, by argument and index. Which of them are as large as a state's is told, since
            upstream asks for it: `state.shape[0] != batch_size`.
    """
    sizes = [((name, index), arguments[name].shape[index]) for name, index in dynamic]
    return tuple(_kind(state, sizes) for state in states)


def _kind(state: Any, sizes: Sequence[tuple[Hashable, int]]) -> Hashable:
    if not isinstance(state, torch.Tensor):
        return state if isinstance(state, bool) else type(state).__qualname__
    relations = tuple(tuple(name for name, size in sizes if size == own) for own in state.shape)
    base = _layout(state._base) if state._is_view() and state._base is not None else None
    return _layout(state), relations, base


def _layout(tensor: torch.Tensor) -> Hashable:
    """How a tensor lies in memory, in the terms in which Dynamo guards it: a stride is a number of elements, or what another
    dimension takes up."""
    if tensor.layout is not torch.strided:
        return describe(tensor), tensor.layout
    extents = [size * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    strides = [
        stride if stride < 2 else next((place for place, extent in enumerate(extents) if extent == stride), -1)
        for stride in tensor.stride()
    ]
    return describe(tensor), tuple(strides), tensor.storage_offset() > 0
