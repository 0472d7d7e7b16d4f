# SPDX-License-Identifier: Apache-2.0
"""What `generate` leaves to a compiled decoder: compiling the decode step, and making its mask."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.cache_utils import StaticCache, StaticLayer

from .compiler import has_cuda_graphs
from .settings import Options


def decodes_itself(model: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a decode step with this cache is replayed from a CUDA graph of the decoder's region.

    `generate` compiles a whole model for static caches on a GPU by itself. Around a region that would trace upstream's
    forward instead of replaying the region.

    Args:
        model: A generated model.
        arguments: What `generate` calls it with, by name: a cache that it decodes with among them.
    """
    options: Options = model.vgen_options
    if not options.compile or not options.cuda_graphs or has_cuda_graphs(options) or torch.is_grad_enabled():
        return False
    return model.device.type == "cuda" and _static_cache(arguments) is not None and _has_decoder(model)


def _static_cache(arguments: Mapping[str, Any]) -> StaticCache | None:
    """The cache among arguments, of whatever name, if all that it knows is in tensors of fixed size."""
    for cache in arguments.values():
        if type(cache) is StaticCache and all(type(layer) is StaticLayer for layer in cache.layers):
            return cache
    return None


def widen_mask(arguments: dict[str, Any]) -> None:
    """Pad the mask of a decode step to the length of a static cache, in place: one shape for all steps.

    Positions after the mask's end are in the future, which is masked anyway; upstream pads it likewise
    (`prepare_padding_mask` in transformers/masking_utils.py).

    Args:
        arguments: A decoder core's arguments by name.
    """
    mask = arguments.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or not mask.is_cuda:
        return
    cache = _static_cache(arguments)
    if cache is None:
        return
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    missing = cache.layers[0].max_cache_len - mask.shape[1]
    if isinstance(tokens, torch.Tensor) and tokens.shape[1] == 1 and missing > 0:
        arguments["attention_mask"] = torch.nn.functional.pad(mask, (0, missing))


def _has_decoder(model: Any) -> bool:
    from .region import Compiled, Role

    found = model.__dict__.get("_vgen_has_decoder")
    if found is None:
        regions = [each.region for each in model.modules() if isinstance(each, Compiled)]
        found = any(region.per_instance and region.role is not Role.ENCODER for region in regions)
        model.__dict__["_vgen_has_decoder"] = found
    return bool(found)
