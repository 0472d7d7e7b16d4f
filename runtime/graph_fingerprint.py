# SPDX-License-Identifier: Apache-2.0
"""What a recorded CUDA graph took from a module and no longer looks at: whether it is still the same, in microseconds."""

import sys
from collections.abc import Callable, Hashable
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as nn_module

from .describe import mode
from .fingerprint import INTERNAL, REGISTRIES
from .held_states import HeldStates
from .watch import UnwatchableError, Watch

# A module that is written to more often isn't worth watching.
_MAX_WATCHES = 4
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device)
_data_ptr: Callable[[torch.Tensor], int] = torch.Tensor.data_ptr


class GraphFingerprint:
    """The modules, parameters, buffers and held states below a module, where their memory is and how it is read, the plain
    attributes of modules and configs, the names that their code looks up in its files, and what else steers a forward.

    A replay reads weights from the addresses that it was recorded with, and runs none of upstream's Python: values changed
    in place are seen, moved memory and changed attributes aren't. Every check is made of few calls that loop in C, since it is
    made for each replayed call.

    Args:
        module: The root. It must not change while this is constructed.
    """

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        self._modules, self._classes = modules, list(map(type, modules))
        self._own: list[dict[str, Any]] = [each.__dict__ for each in modules]
        self._hooks: list[Any] = [
            hooks for each in modules for hooks in (each._forward_hooks, each._forward_pre_hooks)
        ]
        self._tables: list[dict[str, Any]] = [
            table for each in modules for table in (each._modules, each._parameters, each._buffers)
        ]
        # Functions that the code of classes calls may be exchanged in its files' globals.
        contents = _Contents([*self._own, *self._hooks, *self._tables, *_globals(modules)])
        for own in self._own:
            for name, value in own.items():
                if name not in INTERNAL and not name.startswith("_vgen"):
                    contents.add(value)
        # What the name of an attention implementation stands for.
        for registry in REGISTRIES:
            contents.add(registry._global_mapping)
            contents.add(registry._local_mapping)
        self._contents = contents
        self._states = HeldStates(module).now()
        held = (*chain.from_iterable(map(dict.values, self._tables)), *self._states)
        self._tensors = [each for each in held if isinstance(each, torch.Tensor)]
        self._addresses = list(map(_data_ptr, self._tensors))
        self._layouts = list(map(_layout, self._tensors))
        self._backends = _backends()
        self._watch: Watch | None = None
        self._watches = 0
        # By mode, because a tensor's dispatch keys are others under autocast and in inference mode.
        self._layout_watches: dict[Hashable, Watch | None] = {}

    @property
    def is_plain(self) -> bool:
        """Whether a replay leaves nothing out: no Python of its own below the module (hooks, a forward that was put on an
        instance), and nothing in training."""
        has_hooks = any(self._hooks) or nn_module._has_any_global_hook()  # type: ignore[no-untyped-call]
        return not has_hooks and not any("forward" in each or each.get("training") for each in self._own)

    def holds(self) -> bool:
        """Whether all is as it was."""
        return (
            list(map(type, self._modules)) == self._classes
            and self._have_dicts_held()
            and self._contents.have_lists_held()
            and list(map(_data_ptr, self._tensors)) == self._addresses
            and self._are_laid_out()
            and self._backends == _backends()
            and not nn_module._has_any_global_hook()  # type: ignore[no-untyped-call]
        )

    def _are_laid_out(self) -> bool:
        """Whether memory is read as it was: a weight may be transposed where it is."""
        place = mode()
        watch = self._layout_watches.get(place)
        if watch is not None:
            return watch.holds()
        # Watched first, as below.
        watch = _watched([], self._tensors) if place not in self._layout_watches else None
        held = list(map(_layout, self._tensors)) == self._layouts
        if held and place not in self._layout_watches:
            self._layout_watches[place] = watch
        return held

    def _have_dicts_held(self) -> bool:
        if self._watch is not None and self._watch.holds():
            return True
        # Nothing was written yet, or something that may not matter. Watched first, so that nothing is missed in between.
        watch = None
        if self._watches < _MAX_WATCHES:
            self._watches += 1
            watch = _watched(self._contents.dicts, [])
        held = self._contents.have_dicts_held()
        self._watch = watch if held else None
        return held


class _Contents:
    """Dicts, lists and sets, and what is in them.

    Args:
        dicts: Those whose values aren't looked into.
    """

    def __init__(self, dicts: list[dict[Any, Any]]) -> None:
        self.dicts: list[dict[Any, Any]] = []
        self._seen: set[int] = set()
        self._lengths: list[int] = []
        self._keys: list[Any] = []
        self._values: list[Any] = []
        self._lists: list[list[Any]] = []
        self._list_lengths: list[int] = []
        self._listed: list[Any] = []
        self._sets: list[set[Any]] = []
        self._contained: list[set[Any]] = []
        for each in dicts:
            self._add_dict(each)

    def _add_dict(self, names: dict[Any, Any]) -> None:
        """Add a dict whose values aren't looked into."""
        self._seen.add(id(names))
        self.dicts.append(names)
        self._lengths.append(len(names))
        self._keys += names
        self._values += names.values()

    def add(self, value: Any) -> None:
        """Add what a value holds: a container of plain values, or a config."""
        if hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            value = value.__dict__
        if id(value) in self._seen:
            return
        if isinstance(value, tuple):
            for each in value:
                self.add(each)
        elif isinstance(value, dict):
            self._add_dict(value)
            for each in value.values():
                self.add(each)
        elif isinstance(value, list):
            self._seen.add(id(value))
            self._lists.append(value)
            self._list_lengths.append(len(value))
            self._listed += value
            for each in value:
                self.add(each)
        elif isinstance(value, set):
            self._seen.add(id(value))
            self._sets.append(value)
            self._contained.append(set(value))

    def have_lists_held(self) -> bool:
        """Whether lists have the same objects, and sets equal ones."""
        return (
            list(map(len, self._lists)) == self._list_lengths
            and all(map(is_, chain.from_iterable(self._lists), self._listed))
            and self._sets == self._contained
        )

    def have_dicts_held(self) -> bool:
        """Whether all have the same keys in the same order, and the same objects, or equal plain values, under these."""
        if list(map(len, self.dicts)) != self._lengths:
            return False
        keys, values = chain.from_iterable(self.dicts), chain.from_iterable(map(dict.values, self.dicts))
        return all(map(is_, keys, self._keys)) and all(map(_is_same, values, self._values))


def _globals(modules: list[nn.Module]) -> list[dict[str, Any]]:
    """Those of the files that define the modules' classes, PyTorch's functions among them."""
    names = {kind.__module__ for each in map(type, modules) for kind in each.__mro__ if kind is not object}
    files = (sys.modules.get(each) for each in sorted({*names, functional.__name__}))
    return [vars(each) for each in files if each is not None]


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, _PLAIN) and bool(one == other))


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride() if tensor.layout is torch.strided else tensor.layout


def _watched(dicts: list[dict[Any, Any]], tensors: list[torch.Tensor]) -> Watch | None:
    try:
        return Watch(dicts, tensors)
    except UnwatchableError:
        return None


def _backends() -> tuple[Any, ...]:
    """PyTorch's own switches that change what a kernel computes."""
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_default_dtype(),
    )
