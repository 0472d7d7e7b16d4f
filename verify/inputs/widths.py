"""Widths of images and audio that no config field tells: a model says which it expects when it's given another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
_GOT_WANTED = (
    r"shapes cannot be multiplied \(\d+x(?P<got>\d+) and (?P<wanted>\d+)x",
    r"normalized_shape=\[(?P<wanted>\d+)\].* input of size ?\[.*, (?P<got>\d+)\]",
    r"to have (?P<wanted>\d+) channels, but got (?P<got>\d+) channels",
    r"should contain (?P<got>\d+) elements not (?P<wanted>\d+)",
    r"size of tensor a \((?P<got>\d+)\) must match the size of tensor b \((?P<wanted>\d+)\)",
    r"size of tensor a \((?P<wanted>\d+)\) must match the size of tensor b \((?P<got>\d+)\)",
    r"Expected size (?P<got>\d+) but got size (?P<wanted>\d+) for tensor",
    r"Expected size (?P<wanted>\d+) but got size (?P<got>\d+) for tensor",
    r"width (?P<got>\d+) but the model expects (?P<wanted>\d+)",
)
"""What is said of a width, by PyTorch's operations and by models."""
_FRAMES = 16
"""At most so many frames become one."""
_LARGEST = 1 << 20
"""Values of the largest tensor that is tried."""


def widened(media: Inputs, error: Exception) -> Iterator[Inputs]:
    """`media` with the width that `error` asks for, where one of its tensors has the width that is complained of.

    The last dimension counts, or the second: frames or channels may come first.
    """
    for pattern in _GOT_WANTED:
        found = re.search(pattern, str(error))
        if not found or found["got"] == found["wanted"]:
            continue
        changed = _changed(media, int(found["got"]), int(found["wanted"]))
        if changed:
            yield media | _masks(media, changed) | changed
            if len(changed) > 1:
                yield from (media | {name: value} for name, value in changed.items())


def _changed(media: Inputs, got: int, wanted: int) -> Inputs:
    """The tensors with a dimension of `got`, or else of a multiple, of which an encoder makes so many frames.

    Whole images keep their sides: these were asked for.
    """
    for dim, most in ((-1, 1), (1, 1), (-1, _FRAMES), (1, _FRAMES)):
        changed = {
            name: _resized(value, dim, value.shape[dim] // got * wanted)
            for name, value in media.items()
            if isinstance(value, Tensor) and value.is_floating_point() and 1 < value.ndim < (4 if dim < 0 else 9)
            if value.shape[dim] % got == 0 and 0 < value.shape[dim] // got <= (most if got > 1 else 1)
            if value.numel() // got * wanted <= _LARGEST
        }
        if changed:
            return changed
    return {}


def _masks(media: Inputs, changed: Inputs) -> Inputs:
    """The masks of frames of which there are more now, or fewer."""
    sizes = {media[name].shape[1]: value.shape[1] for name, value in changed.items() if value.ndim == 3}
    return {
        name: _resized(value, 1, sizes[value.shape[1]])
        for name, value in media.items()
        if name.endswith("mask") and isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] in sizes
    }


def _resized(value: Tensor, dim: int, size: int) -> Tensor:
    """Noise like `value` of another size in one dimension: the values there are come again."""
    places = torch.arange(size, device=value.device) % value.shape[dim]
    return value.index_select(dim, places)
