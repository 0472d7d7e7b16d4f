# SPDX-License-Identifier: Apache-2.0
"""What caches hold, and the one layout that a decode step leaves it in."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    LinearAttentionLayer,
    StaticLayer,
)


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
