# SPDX-License-Identifier: Apache-2.0
"""Brings caches into the one layout that a decode step leaves them in."""

from collections.abc import Mapping
from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer


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
