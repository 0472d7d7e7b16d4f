# SPDX-License-Identifier: Apache-2.0
"""What caches hold, the one layout that a decode step leaves it in, and what one layer of a model sees of it."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    LinearAttentionLayer,
    StaticCache,
    StaticLayer,
)

LAYER_INDEX = "layer_idx"
"""Upstream's name for a layer's own place in its model."""


def key_value_states(cache: Cache) -> Iterator[torch.Tensor]:
    """The keys and values that a static or growing cache holds, each (batch, heads, kv_length, head_dim)."""
    if isinstance(cache, EncoderDecoderCache):
        yield from key_value_states(cache.self_attention_cache)
        yield from key_value_states(cache.cross_attention_cache)
        return
    for layer in cache.layers:
        if isinstance(layer, StaticLayer | DynamicLayer) and layer.is_initialized:
            yield from (each for each in (layer.keys, layer.values) if isinstance(each, torch.Tensor))


def make_contiguous(arguments: Mapping[str, Any]) -> None:
    """Make the key and value states of growing caches contiguous, in place.

    A compiled prefill may leave them as transposed views, while a decode step concatenates them anew. Dynamo guards on
    strides, so the second decode step would compile once more. The copy is made once, after the prefill. What layers keep
    besides, such as the tokens of a window that isn't full, are parts of larger tensors now and then: likewise.

    Args:
        arguments: A core's arguments by name; those that are no `DynamicCache` are left alone.
    """
    for value in arguments.values():
        if type(value) is not DynamicCache:
            continue
        for layer in value.layers:
            if isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionLayer):
                for kept in vars(layer).values():
                    _detach_parts(kept)
            if type(layer) is DynamicLayer and layer.is_initialized:
                if not layer.keys.is_contiguous():
                    layer.keys = layer.keys.contiguous()
                if not layer.values.is_contiguous():
                    layer.values = layer.values.contiguous()


def _detach_parts(kept: object) -> None:
    """What a layer keeps by key until there is more of it may be a part of the last call's tensors, in place."""
    if isinstance(kept, dict):
        for key, states in kept.items():
            if isinstance(states, torch.Tensor) and (states._is_view() or not states.is_contiguous()):
                kept[key] = states.clone(memory_format=torch.contiguous_format)


def own_index(module: Any) -> int | None:
    """The index that a layer, with all that is below it, asks a cache for. None if there is none, or more than one."""
    found = {vars(part).get(LAYER_INDEX) for part in module.modules()} - {None}
    index = next(iter(found), None)
    return index if len(found) == 1 and isinstance(index, int) else None


def of_layer(arguments: dict[str, Any], index: int) -> dict[str, Any]:
    """A layer's arguments by name, with caches that hold its own states at every index.

    What is compiled for one layer serves the next: no graph holds for one index. Only of plain caches, and where the layer's
    states are there already; the others are left as they are.
    """
    return {name: _of_layer(value, index) if isinstance(value, Cache) else value for name, value in arguments.items()}


def _of_layer(cache: Cache, index: int) -> Cache:
    is_plain = type(cache) in (DynamicCache, StaticCache) and type(cache.layers) is list
    if not is_plain or cache.offloading or index >= len(cache.layers):
        return cache
    # Not `copy.copy`, which leaves a note on upstream's class.
    seen: Cache = object.__new__(type(cache))
    seen.__dict__.update(cache.__dict__, layers=_AtEveryIndex(cache.layers[index]))
    return seen


class _AtEveryIndex:
    """Stands for a cache's list of layers."""

    def __init__(self, layer: CacheLayerMixin) -> None:
        self._layer = layer

    def __getitem__(self, index: int) -> CacheLayerMixin:
        return self._layer

    def __iter__(self) -> Iterator[CacheLayerMixin]:
        yield self._layer

    def __len__(self) -> int:
        # Upstream appends layers until there is one for the index.
        return sys.maxsize
