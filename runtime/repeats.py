# SPDX-License-Identifier: Apache-2.0
"""Calls that differ from the one before in the values of tensors alone, as steps of decoding with a static cache do.

Dynamo's guards look at each layer of a cache by a dozen nodes of a tree, and how its sizes are related in Python. What they said
of a cache that nothing changed since is known.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import is_
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .watch import UnwatchableError, Watch

_PLAIN = (bool, int, float, str, torch.dtype, torch.device)
# A cache that changes from call to call, as a growing one does, isn't worth looking at.
_MAX_LOOKS = 2


class Repeats:
    """The last call that one form served, once it comes again."""

    def __init__(self) -> None:
        self._seen: weakref.ref[Cache] | None = None
        self._last: _Call | None = None
        self._looks = 0

    def has(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call is as the one that was noted: the same cache, which is as it was, and all else equal but for the
        values of tensors."""
        last = self._last
        return last is not None and last.is_like(arguments)

    def note(self, arguments: Mapping[str, Any]) -> bool:
        """Remember a call that Dynamo's guards let through, if it isn't the first with its cache. Returns whether it was."""
        caches = [each for each in arguments.values() if isinstance(each, Cache)]
        if len(caches) != 1:
            return False
        self._last = None
        if self._seen is None or self._seen() is not caches[0]:
            self._seen = weakref.ref(caches[0])
            self._looks = 0
            return False
        if self._looks == _MAX_LOOKS:
            return False
        self._looks += 1
        try:
            self._last = _Call(arguments, caches[0], self._forget)
        except UnwatchableError:
            self._looks = _MAX_LOOKS
        return self._last is not None

    def _forget(self, gone: weakref.ref[Cache]) -> None:
        # What was noted holds tensors of the cache.
        if self._last is not None and self._last.cache is gone:
            self._last = None


class _Call:
    """The arguments of a call, all that a guard can read of them, without the values of tensors.

    Raises:
        UnwatchableError: An argument is something else than a plain value, a plain tensor or a cache of such.
    """

    def __init__(
        self, arguments: Mapping[str, Any], cache: Cache, forget: Callable[[weakref.ref[Cache]], None]
    ) -> None:
        self.cache = weakref.ref(cache, forget)
        self._count = len(arguments)
        self._plain: list[tuple[str, Any]] = []
        self._tensors: list[tuple[str, Any]] = []
        for name, value in arguments.items():
            if value is cache:
                self._name = name
            elif value is None or type(value) in _PLAIN:
                self._plain.append((name, value))
            elif type(value) is torch.Tensor:
                self._tensors.append((name, _layout(value)))
            else:
                raise UnwatchableError(f"{name} is a {type(value).__qualname__}")
        state = _State(cache)
        self._objects = state.objects
        self._types = list(map(type, state.objects))
        self._lists = state.lists
        self._lengths = list(map(len, state.lists))
        self._listed = list(chain.from_iterable(state.lists))
        self._ids = frozenset(map(id, state.tensors))
        # Marks that Dynamo's guards read are attributes of tensors.
        self._watch = Watch([*state.dicts, *(each.__dict__ for each in state.tensors)], state.tensors)

    def is_like(self, arguments: Mapping[str, Any]) -> bool:
        if len(arguments) != self._count or arguments.get(self._name) is not self.cache():
            return False
        for name, value in self._plain:
            if arguments.get(name, self) is not value:
                return False
        for name, layout in self._tensors:
            value = arguments.get(name)
            if type(value) is not torch.Tensor or _layout(value) != layout:
                return False
        return (
            # One of the cache's tensors as an argument is what no other call has.
            self._ids.isdisjoint(map(id, arguments.values()))
            and list(map(type, self._objects)) == self._types
            and list(map(len, self._lists)) == self._lengths
            and all(map(is_, chain.from_iterable(self._lists), self._listed))
            and self._watch.holds()
        )


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    # What else guards ask of it, they ask again.
    return tensor.shape, tensor.stride(), tensor.storage_offset()


class _State:
    """What a cache is made of. The cache itself isn't in `objects`."""

    def __init__(self, cache: Cache) -> None:
        self.objects: list[object] = []
        self.dicts: list[dict[Any, Any]] = []
        self.lists: list[list[Any]] = []
        self.tensors: list[torch.Tensor] = []
        self._known: set[int] = set()
        self._add_attributes(cache)

    def _add_attributes(self, value: Any) -> None:
        for kind in type(value).__mro__[:-1]:
            if vars(kind).get("__slots__"):
                raise UnwatchableError(f"{kind.__qualname__} has slots")
            # A class shows its dict through a proxy, which refers to nothing else.
            self.dicts += gc.get_referents(vars(kind))
        self._add_all((value.__dict__,))

    def _add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            if value is None or type(value) in _PLAIN or isinstance(value, type) or id(value) in self._known:
                continue
            self._known.add(id(value))
            if type(value) is dict:
                self.dicts.append(value)
                self._add_all(value.values())
            elif type(value) is list:
                self.lists.append(value)
                self._add_all(value)
            elif type(value) in (torch.Tensor, torch.nn.Parameter):
                self.tensors.append(value)
            elif isinstance(value, Cache | CacheLayerMixin):
                self.objects.append(value)
                self._add_attributes(value)
            else:
                raise UnwatchableError(f"a cache holds a {type(value).__qualname__}")
