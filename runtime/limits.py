# SPDX-License-Identifier: Apache-2.0
"""Limits in a config on whose two sides upstream's code takes different branches: calls on either side are variants.

- The window of a sliding or chunked attention. The layers of a growing cache keep its last tokens (`DynamicSlidingWindowLayer`
  in transformers/cache_utils.py), and masks know a distance only beyond it.
- The chunk of a state-space layer, the block of a linear or sparse attention: one is another shape than several, and so are
  whole ones. So are the windows of an attention that pads to whole ones (Longformer, LED).
- The windows that a cache compresses tokens by: none, one, two or more of them are full with what is left of the call before.
- The pools of tokens that an index is made of: all in one, or several.
- The size of images in a stack that attends in windows at several resolutions (Swin): padded to whole windows and
  halved from stage to stage, sizes become formulas that take minutes to trace. So each size is a variant there.
- A single sample of several rows of tokens (the codebooks of MusicGen): its batch is of one, though its rows are several.
- The size of the images that position embeddings are made for, those of a part inside too: others are interpolated.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache

# In which argument the length of a call stands, in its second dimension.
_TEXT = ("input_ids", "inputs_embeds", "hidden_states")
_IMAGES = ("pixel_values", "pixel_values_images", "hidden_states")


class Limits:
    """The limits that hold for one instance, read once.

    Args:
        module: The region's module.
        config: Its config, or None.
    """

    def __init__(self, module: torch.nn.Module, config: Any) -> None:
        configs = _configs(module, config)
        self._windows = _whole(filter(_has_windows, configs), "sliding_window", "attention_chunk_size")
        self._chunks = _whole(configs, "chunk_size", "mamba_chunk_size", "block_size") + _padded_windows(module)
        self._rates = _rates(config)
        self._pools = _whole(configs, "index_kpool")
        self._topk = _whole([config], "index_topk") if self._rates else ()
        self._images = _image_sizes(module, config, "image_size", "interpolate_pos_encoding")
        self._axes = _image_sizes(module, config, "pretrain_image_size", "get_absolute_positions")
        self._has_stages = _has_stages(module)
        self._rows = _rows(module)

    def sides(self, arguments: Mapping[str, Any]) -> tuple[Hashable, ...]:
        """On which sides of the limits a call is: equal for two calls that upstream runs in the same branches.

        Args:
            arguments: The core's arguments by name.
        """
        found: list[Hashable] = []
        if self._windows or self._chunks or self._rates or self._pools:
            value = next((each for name in _TEXT if isinstance(each := arguments.get(name), torch.Tensor)), None)
            if value is not None and value.ndim > 1:
                new, past = value.shape[1], _past(arguments)
                for chunk in self._chunks:
                    # Where the last chunk is whole, nothing is padded.
                    found += (new > chunk, new % chunk == 0)
                for kind, rate in self._rates:
                    left, done = _kept(arguments, kind)
                    windows = (left + new) // rate
                    # The first of several is set apart: of two, one is left, which is broadcast.
                    found += (min(windows, 3), *(done + windows >= each for each in self._topk))
                # One pool is broadcast.
                found += (new + _indexed(arguments) > pool for pool in self._pools)
                for window in self._windows:
                    # As in `update` and `get_mask_sizes` there.
                    found += (new + past >= window - 1, new + past >= window, past >= window - 1, past >= window)
        if self._images or self._axes:
            name = _image(arguments)
            if name is not None:
                size = tuple(arguments[name].shape[-2:])
                found += [size == image for image in self._images]
                # Height and width are compared one after the other.
                found += [size[axis] == image[axis] for image in self._axes for axis in (0, 1)]
        if self._rows is not None:
            value = arguments.get("input_ids")
            found.append(isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape[0] == self._rows)
        found += [arguments[name].shape[dim] for name, dim in self.fixed(arguments)]
        return tuple(found)

    def fixed(self, arguments: Mapping[str, Any]) -> list[tuple[str, int]]:
        """The dimensions of tensors among the arguments whose sizes belong to the variant, by argument and index.

        Images of the size that position embeddings are made for are a variant of one size: as a number, it lets a compiler see
        that the tokens of all images follow one another, where it copies them before matrix products else.

        Args:
            arguments: The core's arguments by name.
        """
        image = _image(arguments)
        if image is None:
            return []
        if not self._has_stages:
            ndim = arguments[image].ndim
            is_known = tuple(arguments[image].shape[-2:]) in self._images
            return [(image, ndim - 2), (image, ndim - 1)] if is_known else []
        tensors = ((name, each) for name, each in arguments.items() if isinstance(each, torch.Tensor))
        return [(name, dim) for name, each in tensors for dim in range(1, each.ndim)]


def _configs(module: torch.nn.Module, config: Any) -> list[Any]:
    """The region's config, and those of the parts that have others: of the text in a model of several kinds of input."""
    held = [config, *(getattr(part, "config", None) for part in module.modules())]
    return list({id(each): each for each in held if each is not None}.values())


def _image(arguments: Mapping[str, Any]) -> str | None:
    """The name of the argument that has images."""
    name = next((name for name in _IMAGES if isinstance(arguments.get(name), torch.Tensor)), None)
    return name if name is not None and arguments[name].ndim > 3 else None


def _has_stages(module: torch.nn.Module) -> bool:
    """Whether the layers of one class that have a window have several widths: what is halved in size is doubled in width."""
    widths: dict[type, set[frozenset[int]]] = {}
    for part in module.modules():
        if type(getattr(part, "window_size", None)) is int:
            own = frozenset(each.shape[-1] for each in part.parameters() if each.ndim)
            widths.setdefault(type(part), set()).add(own)
    return any(len(found) > 1 for found in widths.values())


def _rows(module: torch.nn.Module) -> int | None:
    """How many rows of tokens make a sample, where each has an embedding table of its own; a single sample is apart."""
    tables = (getattr(part, "embed_tokens", None) for part in module.modules())
    return next((len(each) for each in tables if isinstance(each, torch.nn.ModuleList)), None)


def _has_windows(config: Any) -> bool:
    """Whether layers attend in windows, as far as a config says."""
    kinds = _read(config, "layer_types")
    return not isinstance(kinds, list) or any("sliding" in str(kind) or "chunk" in str(kind) for kind in kinds)


def _padded_windows(module: torch.nn.Module) -> tuple[int, ...]:
    """The windows that attention pads a text to, by upstream's name for half of one."""
    halves = (getattr(part, "one_sided_attn_window_size", None) for part in module.modules())
    return tuple(dict.fromkeys(2 * half for half in halves if type(half) is int and half > 0))


def _rates(config: Any) -> tuple[tuple[str, int], ...]:
    """How many tokens each kind of layer compresses into one."""
    rates = _read(config, "compress_rates")
    found = rates.items() if isinstance(rates, dict) else ()
    return tuple((kind, rate) for kind, rate in found if type(rate) is int and rate > 0)


def _whole(configs: Iterable[Any], *names: str) -> tuple[int, ...]:
    """The positive whole numbers that configs have under these names."""
    values = (_read(config, name) for config in configs for name in names)
    return tuple(dict.fromkeys(value for value in values if type(value) is int and value > 0))


def _image_sizes(module: torch.nn.Module, config: Any, name: str, method: str) -> tuple[tuple[int, int], ...]:
    """The sizes under a name in the configs of the parts that have a method, which compares sizes with it. A part without a
    config of its own goes by the region's."""
    configs = (getattr(part, "config", config) for part in module.modules() if hasattr(part, method))
    sizes = (_pair(_read(each, name)) for each in configs)
    return tuple(dict.fromkeys(size for size in sizes if size is not None))


def _pair(size: Any) -> tuple[int, int] | None:
    if type(size) is int:
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return size[0], size[1]
    return None


def _read(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except ValueError:
        # Upstream refuses to tell one value where layers have their own.
        return None


def _past(arguments: Mapping[str, Any]) -> int:
    """How many tokens the sliding layers of a growing cache have seen."""
    for value in arguments.values():
        cache = value.self_attention_cache if isinstance(value, EncoderDecoderCache) else value
        if isinstance(cache, Cache):
            for layer in cache.layers:
                seen = layer.__dict__.get("cumulative_length")
                if type(seen) is int:
                    return seen
    return 0


def _indexed(arguments: Mapping[str, Any]) -> int:
    """How many tokens the index of a cache has."""
    for value in arguments.values():
        for layer in value.layers if isinstance(value, Cache) else ():
            keys = vars(layer).get("indexer_keys")
            if isinstance(keys, torch.Tensor):
                return keys.shape[1]
    return 0


def _kept(arguments: Mapping[str, Any], kind: str) -> tuple[int, int]:
    """How many tokens the first layer of a kind keeps in a cache for its next window, and how many windows it compressed."""
    for value in arguments.values():
        for layer in value.layers if isinstance(value, Cache) else ():
            held = vars(layer)
            if getattr(layer, "_layer_type", None) == kind and "buffer_kv" in held and "entry_count" in held:
                states = next(iter(held["buffer_kv"].values()))
                return (0 if states is None else states.shape[1]), max(held["entry_count"].values())
    return 0, 0
