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
