# SPDX-License-Identifier: Apache-2.0
"""What a CUDA graph reads and leaves: a call's arguments in buffers of its own, and its outputs as the caller's."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, StaticCache, StaticLayer
from transformers.utils import ModelOutput

from .packing import Bucket

# Set on tensors that a prologue keeps: nobody changes them.
KEPT = "_vgen_kept"

_PLAIN = (bool, int, float, str, torch.dtype, torch.device)


class NotReplayableError(Exception):
    """A call that a graph can't stand for; the message says why."""


@dataclass(slots=True, kw_only=True)
class Buffers:
    """Where a call's arguments are copied to. `arguments` are what the core is called with; `kept` the caller's tensors
    whose values the buffers hold already (results of a prologue, which nobody changes)."""

    arguments: dict[str, Any]
    bucket: Bucket | None
    kept: dict[str, torch.Tensor]

    @torch.inference_mode()
    def fill(self, arguments: Mapping[str, Any]) -> None:
        # In inference mode any tensor may be written to, also one that was made in it.
        names = []
        for name, value in arguments.items():
            if self.kept.get(name) is value and value is not None:
                continue
            names.append(name)
            if getattr(value, KEPT, False):
                self.kept[name] = value
            else:
                self.kept.pop(name, None)
        if self.bucket is not None:
            self.bucket.fill(self.arguments, arguments, frozenset(names))
            return
        for name in names:
            _copy(self.arguments[name], arguments[name])


def describe_argument(value: Any, device: torch.device) -> Hashable:
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        if value.device != device:
            raise NotReplayableError(f"an argument is on {value.device}")
        return (type(value), value.shape, value.dtype, value.requires_grad, value.is_inference())
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, Cache):
        return _cache_addresses(value)
    if isinstance(value, Mapping):
        return tuple((key, describe_argument(each, device)) for key, each in value.items())
    if isinstance(value, tuple | list):
        return (type(value), *(describe_argument(each, device) for each in value))
    raise NotReplayableError(f"an argument is a {type(value).__name__}")


def _cache_addresses(cache: Cache) -> Hashable:
    """Where a cache's states are. A graph writes there; layers that also count in Python can't be replayed."""
    if type(cache) is not StaticCache:
        raise NotReplayableError(f"the cache is a {type(cache).__name__}")
    parts: list[Hashable] = []
    for layer in cache.layers:
        if type(layer) is not StaticLayer or not layer.is_initialized or getattr(layer, "record_past", False):
            raise NotReplayableError(f"the cache has a layer of type {type(layer).__name__}")
        keys = layer.keys
        parts += (keys.data_ptr(), layer.values.data_ptr(), layer.cumulative_length.data_ptr())
    return (keys.shape, keys.dtype, layer.values.shape, *parts) if cache.layers else ()


def buffers_for(value: Any) -> Any:
    """Tensors of the same shapes to copy into. A cache is used where it is."""
    if isinstance(value, torch.Tensor):
        # Of the kind that the caller's is: Dynamo tells tensors that were made in inference mode apart.
        with torch.inference_mode(value.is_inference()), torch.no_grad():
            return torch.empty(value.shape, dtype=value.dtype, device=value.device)
    if isinstance(value, Cache):
        return value
    if isinstance(value, dict):
        return {key: buffers_for(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(buffers_for(each) for each in value)
    return value


def _copy(buffer: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        buffer.copy_(value)
    elif isinstance(value, Mapping) and not isinstance(value, Cache):
        for key, each in value.items():
            _copy(buffer[key], each)
    elif isinstance(value, tuple | list):
        for into, each in zip(buffer, value, strict=True):
            _copy(into, each)


@dataclass(frozen=True, slots=True)
class _Noted:
    """A buffer, and what it held."""

    buffer: torch.Tensor
    held: torch.Tensor


def note(value: Any) -> Any:
    """What buffers hold before a core runs on them, in containers like theirs. See `give_back`."""
    if isinstance(value, torch.Tensor):
        return _Noted(value, value.clone())
    if isinstance(value, Mapping) and not isinstance(value, Cache):
        return {key: note(each) for key, each in value.items()}
    return [note(each) for each in value] if isinstance(value, tuple | list) else None


@torch.inference_mode()
def give_back(noted: Any, taken: Any, arguments: Any) -> bool:
    """Do to the caller's arguments what a core did to the buffers that stood for them, and say whether it did anything.

    A graph writes to its buffers alone, so a core that does isn't replayed: RWKV's state is changed where the caller has it.

    Args:
        noted: What `note` made of the buffers.
        taken: The buffers, after the core ran.
        arguments: What the caller gave.
    """
    if isinstance(noted, _Noted):
        if torch.equal(noted.buffer, noted.held):
            return False
        arguments.copy_(noted.buffer)
        return True
    if not isinstance(noted, dict | list):
        return False
    places = list(noted) if isinstance(noted, dict) else range(len(noted))
    if len(taken) != len(noted):
        arguments.clear()
        (arguments.update if isinstance(noted, dict) else arguments.extend)(taken)
        return True
    found = False
    for place in places:
        before, now = noted[place], taken[place]
        if isinstance(before, _Noted) and now is not before.buffer:
            # Another tensor is in its place.
            arguments[place] = now
            found = True
        else:
            found = give_back(before, now, arguments[place]) or found
    return found


def restored(output: Any, taken: Mapping[str, Any], arguments: Mapping[str, Any], bucket: Bucket | None) -> Any:
    """A recorded output as the caller's own: tensors copied, cut to the call's tokens, caches the call's.

    Raises:
        NotReplayableError: The output holds something else.
    """
    if isinstance(output, torch.Tensor):
        if bucket is None:
            return output.clone()
        cut = bucket.cut(output, arguments[bucket.rows[0]].shape[0])
        if cut is None:
            raise NotReplayableError("an output has no row for each token or group of tokens")
        return cut.clone()
    if output is None or isinstance(output, _PLAIN):
        return output
    for name, value in taken.items():
        if output is value:
            return arguments[name]
    if isinstance(output, ModelOutput):
        rebuilt = {key: restored(each, taken, arguments, bucket) for key, each in output.items()}
        return type(output)(**rebuilt)
    if isinstance(output, dict):
        return {key: restored(each, taken, arguments, bucket) for key, each in output.items()}
    if isinstance(output, tuple | list):
        return type(output)(restored(each, taken, arguments, bucket) for each in output)
    raise NotReplayableError(f"an output is a {type(output).__name__}")


def restored_or_none(output: Any, arguments: Mapping[str, Any], bucket: Bucket) -> Any:
    try:
        return restored(output, {}, arguments, bucket)
    except NotReplayableError:
        return None


def padded(arguments: dict[str, Any], bucket: Bucket, padding: float = 0.0) -> Buffers:
    """Buffers that hold the padded arguments, the rows of floating tensors padded with a value."""
    buffers = Buffers(arguments={**arguments, **bucket.allocate(arguments)}, bucket=bucket, kept={})
    buffers.fill(arguments)
    with torch.inference_mode():
        for name in bucket.rows:
            if buffers.arguments[name].is_floating_point():
                buffers.arguments[name][arguments[name].shape[0] :] = padding
    return buffers
