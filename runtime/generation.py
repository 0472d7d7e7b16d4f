# SPDX-License-Identifier: Apache-2.0
"""What `generate` leaves to a compiled decoder: compiling the decode step, making its mask, and when it waits for a token."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers.cache_utils import StaticCache, StaticLayer
from transformers.generation import utils

from .compiler import has_cuda_graphs
from .scopes import with_globals
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


def steps_by_block(model: Any) -> bool:
    """Whether a decode step runs the layers of a decoder one by one, each compiled: what was asked for is a first call that is
    soon there, and around them `generate` would compile the whole model, without them.

    Args:
        model: A generated model.
    """
    options: Options = model.vgen_options
    return options.compile and _has_decoder(model, per_instance=False)


def _static_cache(arguments: Mapping[str, Any]) -> StaticCache | None:
    """The cache among arguments, of whatever name, if all that it knows is in tensors of fixed size."""
    return next((each for each in arguments.values() if _is_static(each)), None)


def _is_static(cache: Any) -> bool:
    return type(cache) is StaticCache and all(type(layer) is StaticLayer for layer in cache.layers)


def run_ahead(sample: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """`generate`'s loop over tokens, in which the host issues a step while the GPU computes the one before.

    Upstream's loop can do that (`DeferredStopCheck` in transformers/generation/utils.py): whether all rows are finished is
    read one step late, and what the surplus step made is cut off. It does so on Apple's GPUs alone; on others the GPU is idle
    from each token until the host has issued the next step.

    Args:
        sample: Upstream's `_sample`, a function.
        arguments: What `generate` calls it with, by name.

    Returns:
        The function that does it: `sample` itself where numbers are drawn at random, where criteria or processors of the user's
        are called for each token, or where this Transformers can't. Hooks on modules see the surplus step.
    """
    is_upstreams = sample is getattr(utils.GenerationMixin, "_sample", None)
    if not is_upstreams or not hasattr(utils, "DeferredStopCheck"):
        return sample
    called = (*arguments.get("logits_processor", ()), *arguments.get("stopping_criteria", ()))
    config = arguments.get("generation_config")
    if config is None or config.do_sample or arguments.get("synced_gpus") or not _are_upstreams(called):
        return sample
    return _deferring()


def _are_upstreams(objects: Iterable[Any]) -> bool:
    return all(type(each).__module__.partition(".")[0] == "transformers" for each in objects)


@functools.cache
def _deferring() -> Callable[..., Any]:
    class Deferred(utils.DeferredStopCheck):  # type: ignore[misc]  # Any, to mypy
        @staticmethod
        def is_supported(device: torch.device, cache: Any, cache_is_returned: bool, is_assistant: bool) -> bool:
            return device.type == "cuda" and _is_static(cache) and not cache_is_returned and not is_assistant

    # The same code with another answer to this question: upstream's own class stays as it is for all other models.
    own: Any = utils.GenerationMixin._sample
    return with_globals(own, {**own.__globals__, "DeferredStopCheck": Deferred})


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


def _has_decoder(model: Any, *, per_instance: bool = True) -> bool:
    """Whether it has a decoder that is compiled whole or, where `per_instance` is False, layer by layer."""
    from .region import Compiled, Role

    known: dict[bool, bool] | None = model.__dict__.get("_vgen_has_decoder")
    if known is None:
        regions = [each.region for each in model.modules() if isinstance(each, Compiled)]
        decoders = [each for each in regions if each.role is not Role.ENCODER and not each.only_in_training]
        known = {kind: any(each.per_instance is kind for each in decoders) for kind in (True, False)}
        model.__dict__["_vgen_has_decoder"] = known
    return known[per_instance]
