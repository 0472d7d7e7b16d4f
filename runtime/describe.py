# SPDX-License-Identifier: Apache-2.0
"""Descriptions of argument values: equal for two calls that can share a compiled form. Plain Python, and fast."""

from collections.abc import Hashable, Mapping
from enum import Enum
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache

# What equals only what it is, and whose equality Dynamo's guards share.
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device, torch.memory_format, torch.layout, Enum)
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


class UndescribableError(Exception):
    """A value of a type that isn't understood; the message names it."""


def mode() -> Hashable:
    """Grad mode, inference mode, and for which devices autocast is on, with its dtype."""
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _autocast() if _any_autocast() else None)


def describe(value: object) -> Hashable:
    """Describe a value: tensors with all dimensions dynamic, plain values by type and value, and the structure of
    tuples, lists, dicts, Transformers' caches and plain objects that hold tensors, as caches of a model's own do.

    Raises:
        UndescribableError: It is, or holds, something else.
    """
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        shape = value.shape
        bits = [length if length < 2 else -1 for length in shape]
        return (*kind_of(value), *bits)
    if isinstance(value, _PLAIN):
        # With the type, because True == 1 == 1.0.
        return (type(value), value)
    if isinstance(value, Cache):
        return _describe_cache(value)
    if isinstance(value, Mapping):
        return (type(value), *((key, describe(each)) for key, each in value.items() if _is_key(key)))
    if isinstance(value, tuple | list):
        return (type(value), *map(describe, value))
    if type(value).__mro__[1:] == (object,) and _holds_tensors(getattr(value, "__dict__", None)):
        return (type(value), *((name, _describe_attribute(each)) for name, each in vars(value).items()))
    raise UndescribableError(f"a value of type {type(value).__module__}.{type(value).__qualname__}")


def kind_of(value: torch.Tensor) -> tuple[Hashable, ...]:
    """What a graph is made for in a tensor, but for its sizes: class, dtype, device, and whether it has a gradient or is one of
    inference mode, which may be given tensors of before it, too."""
    return (type(value), value.dtype, value.device, value.requires_grad, value.is_inference())


def _is_key(key: object) -> bool:
    if isinstance(key, str | int):
        return True
    raise UndescribableError(f"a dict key of type {type(key).__module__}.{type(key).__qualname__}")


def _holds_tensors(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    return any(map(_holds_tensors, value)) if isinstance(value, tuple | list) else isinstance(value, torch.Tensor)


def _describe_attribute(value: object) -> Hashable:
    """What a plain object has under a name. Counts and configs are told by type alone: where a graph depends on more, Dynamo's
    guards ask for it."""
    if isinstance(value, dict):
        return (type(value), *((key, _describe_attribute(each)) for key, each in value.items()))
    if isinstance(value, tuple | list):
        return (type(value), *map(_describe_attribute, value))
    if value is None or isinstance(value, bool | torch.Tensor):
        return describe(value)
    return (type(value),)


def _describe_cache(cache: Cache) -> Hashable:
    if isinstance(cache, EncoderDecoderCache):
        return (
            type(cache),
            _describe_cache(cache.self_attention_cache),
            _describe_cache(cache.cross_attention_cache),
            frozenset(cache.is_updated.values()),
        )
    # Layers of one class in one state are described by the first of them: a deep model isn't slower to describe than
    # a shallow one, and where layers differ in what this leaves out, Dynamo's guards tell them apart.
    kind: type = type(cache)
    parts: list[Hashable] = [kind, len(cache.layers)]
    previous: object = None
    for layer in cache.layers:
        state = (type(layer), getattr(layer, "is_initialized", None))
        if state != previous:
            previous = state
            parts.append((*state, *_describe_layer(layer)))
    return tuple(parts)


def _describe_layer(layer: Any) -> list[Hashable]:
    # From __dict__, so that a layer of any kind (attention, linear attention, indexed) is described by what it has.
    parts: list[Hashable] = []
    for name, value in layer.__dict__.items():
        if value is None or isinstance(value, bool):
            parts.append((name, value))
        elif isinstance(value, torch.Tensor):
            # Tokens of a window may be the end of a larger tensor; PyTorch compiles offsets of 0 apart.
            parts.append((name, describe(value), value.storage_offset() > 0))
        elif isinstance(value, dict):
            parts.append((name, *map(_describe_kept, value.values())))
    return parts


def _describe_kept(value: object) -> Hashable:
    """What a layer keeps under a key: counts change from call to call, and are told by the tensors."""
    return describe(value) if value is None or isinstance(value, bool | torch.Tensor) else False


def _any_autocast() -> bool:
    return bool(torch._C._is_any_autocast_enabled())


def _autocast() -> Hashable:
    return tuple(
        (device, torch.get_autocast_dtype(device)) for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device)
    )
