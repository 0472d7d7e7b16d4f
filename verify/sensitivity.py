"""Tiny models whose outputs say something about their inputs.

A checkpoint's `initializer_range` belongs to its widths. In a stack that is narrow and deep, convolutions above all, a signal
gets weaker with every layer until it is zero, and zeros are equal whatever was computed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .inputs.facts import walk_configs
from .measure import leaves

_RANGES = (0.2, 0.5)
"""What `initializer_range` is tried instead, smallest first."""
_LEAST = 1e-6
"""Outputs that differ by less are taken as equal."""


def livelier(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Copies of `config` with larger random weights, by `initializer_range`; the model's own initialization reads it."""
    for value in _RANGES:
        made = copy.deepcopy(config)
        for _, part in walk_configs(made):
            if part is made or hasattr(part, "initializer_range"):
                part.initializer_range = value
        yield made


def depends_on(model: PreTrainedModel, first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two calls of `model` give other outputs, numbers all of them; keyword arguments as `make_inputs` makes them."""
    with torch.no_grad():
        pair = [[each for _, each in leaves(model(**inputs))] for inputs in (first, second)]
    if len(pair[0]) != len(pair[1]):
        return True
    return any(_differ(a, b) for a, b in zip(*pair, strict=True))


def _differ(a: Any, b: Any) -> bool:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return type(a) is not type(b)
    if a.shape != b.shape:
        return True
    if not a.is_floating_point():
        return not torch.equal(a, b)
    between = (a - b).abs()
    return bool((between[between.isfinite()] >= _LEAST).any())
