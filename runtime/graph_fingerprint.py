# SPDX-License-Identifier: Apache-2.0
"""What a recorded CUDA graph took from a module and no longer looks at: whether it is still the same, in microseconds."""

from collections.abc import Callable
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn

from .held_states import HeldStates
from .watch import UnwatchableError, Watch

# A module that is written to more often isn't worth watching.
_MAX_WATCHES = 4
_data_ptr: Callable[[torch.Tensor], int] = torch.Tensor.data_ptr
_training = attrgetter("training")


class GraphFingerprint:
    """The modules, parameters, buffers and held states below a module, where their memory is, and what else steers a forward.

    A replay reads weights from the addresses that it was recorded with: values changed in place are seen, moved memory
    isn't. Every check is made of few calls that loop in C, since it is made for each replayed call.

    Args:
        module: The root. It must not change while this is constructed.
    """

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        self._modules = modules
        tables: list[dict[str, Any]] = [
            table for each in modules for table in (each._modules, each._parameters, each._buffers)
        ]
        # Most are empty: of those the length says all.
        self._tables = [table for table in tables if table]
        self._hooks: list[Any] = [
            hooks for each in modules for hooks in (each._forward_hooks, each._forward_pre_hooks)
        ]
        self._attributes = [each.__dict__ for each in modules]
        self._dicts: list[Any] = [*tables, *self._attributes, *self._hooks]
        self._lengths = list(map(len, self._dicts))
        self._objects = list(chain.from_iterable(map(dict.values, self._tables)))
        self._held = HeldStates(module)
        self._states = self._held.now()
        self._tensors = [each for each in (*self._objects, *self._states) if isinstance(each, torch.Tensor)]
        self._addresses = list(map(_data_ptr, self._tensors))
        self._config = getattr(module, "config", None)
        self._settings = dict(self._config.__dict__) if self._config is not None else {}
        self._backends = _backends()
        self._watch: Watch | None = None
        self._watches = 0

    @property
    def is_plain(self) -> bool:
        """Whether a replay leaves nothing out: no Python of its own below the module (hooks, a forward that was put on an
        instance), and nothing in training."""
        own = any(self._hooks) or any("forward" in each for each in self._attributes)
        return not own and not any(map(_training, self._modules))

    def holds(self) -> bool:
        """Whether all is as it was."""
        return (
            self._have_dicts_held()
            and list(map(_data_ptr, self._tensors)) == self._addresses
            and (self._config is None or self._config.__dict__ == self._settings)
            and self._backends == _backends()
        )

    def _have_dicts_held(self) -> bool:
        if self._watch is not None and self._watch.holds():
            return True
        # Nothing was written yet, or something that may not matter. Watched first, so that nothing is missed in between.
        watch = self._watched()
        held = (
            list(map(len, self._dicts)) == self._lengths
            and all(map(is_, chain.from_iterable(map(dict.values, self._tables)), self._objects))
            and self._held.are(self._states)
            and not any(map(_training, self._modules))
        )
        self._watch = watch if held else None
        return held

    def _watched(self) -> Watch | None:
        if self._watches == _MAX_WATCHES:
            return None
        self._watches += 1
        try:
            return Watch(self._dicts, [])
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
