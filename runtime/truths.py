# SPDX-License-Identifier: Apache-2.0
"""Arguments of which upstream's code asks nothing but whether they hold anything: the host asks once, before a graph runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

# The arguments of the region that runs. Whatever else is traced by the way asks for itself.
_told: ContextVar[tuple[str, ...]] = ContextVar("vgen_told", default=())


@contextmanager
def told(arguments: dict[str, Any], names: tuple[str, ...]) -> Iterator[None]:
    """For a region's run: these of its arguments are None where they hold nothing, in place, so that a graph for others
    needn't ask.

    Args:
        arguments: The core's arguments by name.
        names: Those of which upstream's code asks nothing else.
    """
    for name in names:
        value = arguments.get(name)
        if isinstance(value, torch.Tensor) and not value.is_meta and not value.any():
            arguments[name] = None
    token = _told.set(names)
    try:
        yield
    finally:
        _told.reset(token)


def is_told() -> bool:
    """Whether a region runs of which upstream's code asks such things."""
    return bool(_told.get())


def holds_any(value: torch.Tensor, name: str) -> Any:
    """Whether a tensor holds anything but zeros: True in a region's graph, upstream's `value.any()` elsewhere.

    Args:
        value: A region's argument, as it was handed down.
        name: Its name there.
    """
    if torch.compiler.is_compiling() and _is_told(name):
        return True
    return value.any()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # untyped in PyTorch
def _is_told(name: str) -> bool:
    """Dynamo calls it while it makes a graph: one of a region's serves no other calls."""
    return name in _told.get()
