# SPDX-License-Identifier: Apache-2.0
"""Sizes that upstream computes with functions of tensors, as numbers."""

from typing import Any

import torch


def divide_size(dividend: Any, divisor: Any, *, rounding_mode: str) -> Any:
    """The quotient of a size, without its fraction: a number inside a graph, a tensor as upstream's elsewhere.

    Args:
        dividend: The size.
        divisor: What it is divided by. If it isn't a positive int, this is `torch.div`.
        rounding_mode: As of `torch.div`, "trunc" or "floor": the same for a size.
    """
    if torch.compiler.is_compiling() and isinstance(dividend, int) and isinstance(divisor, int) and divisor > 0:
        return dividend // divisor
    return torch.div(dividend, divisor, rounding_mode=rounding_mode)


def tensor_of_range(*bounds: Any, backwards: bool = False, device: Any = None) -> torch.Tensor:
    """`torch.tensor(list(range(*bounds)), device=device)`, or with `[::-1]` after the list, as a graph for all sizes has it.

    Args:
        *bounds: As of `range`. If they aren't ints, the list is made.
        backwards: Whether the numbers are in the opposite order.
        device: As of `torch.tensor`.
    """
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    if not (isinstance(start, int) and isinstance(stop, int) and isinstance(step, int)) or step == 0:
        listed = list(range(*bounds))
        return torch.tensor(listed[::-1] if backwards else listed, device=device)
    if (stop - start) * step <= 0:
        # No numbers, so none that are whole: it has the default dtype.
        return torch.tensor([], device=device)
    numbers = torch.arange(start, stop, step, dtype=torch.int64, device=device)
    return numbers.flip(0) if backwards else numbers
