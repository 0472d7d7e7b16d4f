# SPDX-License-Identifier: Apache-2.0
"""What caches hold, and the one layout that a decode step leaves it in."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache, StaticLayer


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
    strides, so the second decode step would compile once more. The copy is made once, after the prefill.

    Args:
        arguments: A core's arguments by name; those that are no `DynamicCache` are left alone.
    """
    for value in arguments.values():
        if type(value) is not DynamicCache:
            continue
        for layer in value.layers:
            if type(layer) is DynamicLayer and layer.is_initialized:
                if not layer.keys.is_contiguous():
                    layer.keys = layer.keys.contiguous()
                if not layer.values.is_contiguous():
                    layer.values = layer.values.contiguous()
