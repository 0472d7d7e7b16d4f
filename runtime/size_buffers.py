# SPDX-License-Identifier: Apache-2.0
"""Buffers of whole numbers that upstream computes sizes from, read as numbers for the time that a region runs.

In eager such a buffer is a tensor of no dimensions. In a graph nothing is known of what it holds, so no size can be computed from
it. Read before each call, its number is a constant of the graph, and another number takes another graph.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from threading import Lock
from typing import Any, Self

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

EXACT = 2**24
"""Up to here float32, in which upstream divides, has every whole number."""

# What is left to the sizes on a module's way from its arguments: what it pads, and the divisors.
_MARGIN = 2**16


class SizeBuffers:
    """Mixin of classes that compute sizes from buffers.

    A class has `size_buffers`, the names of them: each an int64 tensor of no dimensions.
    """

    size_buffers: tuple[str, ...]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        # The dict stays, with other entries: what watches a module's attributes sees no change.
        self.__dict__["_vgen_sizes"] = {}
        return self

    @property
    def vgen_sizes(self) -> dict[str, int]:
        """The numbers by the names of their buffers while a region runs this module, if all can be read; else empty."""
        sizes: dict[str, int] = self.__dict__["_vgen_sizes"]
        return sizes


class SizeReader:
    """Reads the numbers of a module and of those below it.

    Attributes:
        is_empty: It has none. Not looked up again.
        numbers: What was read last, in the modules' order; None for a module whose buffers aren't what they were made as.

    Args:
        module: A region's module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.is_empty = not any(isinstance(part, SizeBuffers) for part in module.modules())
        self.numbers: tuple[tuple[int, ...] | None, ...] = ()
        self._module = module
        self._parts: list[Any] = []
        self._lock = Lock()
        self._running = 0
        # By tensor: the version that was read, and the number.
        self._known: MutableMapping[torch.Tensor, tuple[int, int]] = WeakTensorKeyDictionary()

    def read(self) -> bool:
        """Read the numbers, until `forget`. Returns whether they aren't those of the call before."""
        # Looked for in every call: a part that was put in since would be run by what it held when it was read elsewhere.
        parts: list[Any] = [part for part in self._module.modules() if isinstance(part, SizeBuffers)]
        found = tuple(map(self._numbers, parts))
        with self._lock:
            self._running += 1
            self._parts = parts
            for part, numbers in zip(parts, found, strict=True):
                if numbers is None:
                    part.vgen_sizes.clear()
                else:
                    part.vgen_sizes.update(zip(part.size_buffers, numbers, strict=True))
            changed = found != self.numbers
            self.numbers = found
        return changed

    def forget(self) -> None:
        """Nobody else's graph is to read them: by then a buffer may hold another number. Calls in several threads end with
        the last of them."""
        with self._lock:
            self._running -= 1
            if not self._running:
                for part in self._parts:
                    part.vgen_sizes.clear()

    def _numbers(self, part: Any) -> tuple[int, ...] | None:
        tensors = [part._buffers.get(name) for name in part.size_buffers]
        known = [each for each in tensors if each is not None and _is_number(each)]
        # Of two devices, a GPU's kernel may multiply by a divisor's reciprocal, which rounds another way.
        if len(known) < len(tensors) or len({each.device for each in known}) > 1:
            return None
        return tuple(map(self._number, known))

    def _number(self, tensor: torch.Tensor) -> int:
        if tensor.device.type == "cpu" or tensor.is_inference():
            return int(tensor.item())
        # Elsewhere reading waits for the device: only again where it was exchanged or written.
        known = self._known.get(tensor)
        if known is None or known[0] != tensor._version:
            known = self._known[tensor] = (tensor._version, int(tensor.item()))
        return known[1]


def _is_number(tensor: torch.Tensor) -> bool:
    # Of another dtype, arithmetic wraps around at other numbers.
    return type(tensor) is torch.Tensor and tensor.dtype is torch.int64 and not tensor.ndim and not tensor.is_meta


def is_beyond_exact(arguments: Mapping[str, Any]) -> bool:
    """Whether a call has so large a size that `divide_rounding_up` may be left to upstream's arithmetic, which no graph can
    hold: such calls are variants of their own, so that those with smaller sizes are compiled all the same."""
    return any(size >= EXACT // 2 - _MARGIN for size in _sizes(arguments))


def _sizes(arguments: Mapping[str, Any]) -> Iterator[int]:
    for value in arguments.values():
        if isinstance(value, torch.Tensor):
            yield from value.shape


def divide_rounding_up(dividend: Any, divisor: Any, added: int = 0) -> Any:
    """`torch.ceil(dividend / divisor + added).to(torch.int64)` of tensors of whole numbers, as upstream computes sizes.

    Exact: below 2**24 float32 has every whole number. A quotient that isn't whole is at least 1/divisor from the next one that
    is, and rounding moves it, and then the sum, by 2**-24 of it at most. That is less while twice the dividend, and the divisor
    `added` + 1 times, make less than 2**24 together.

    Args:
        dividend: A whole number.
        divisor: A whole number.
        added: What is added to the quotient.

    Returns:
        An int; upstream's tensor where the numbers are too large for that, or the divisor isn't positive.
    """
    if divisor > 0 and torch.get_default_dtype() is torch.float32:
        bound = (EXACT - (abs(added) + 1) * divisor) // 2
        if -bound < dividend < bound:
            return (dividend + divisor - 1) // divisor + added
    return torch.ceil(torch.tensor(dividend) / torch.tensor(divisor) + added).to(torch.int64)
