"""Tiny models that run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .inputs import CannotMakeInputsError, Request, make_inputs
from .sensitivity import depends_on, livelier
from .tiny import ATTEMPTS, CannotShrinkError, set_missed, tiny_config

_LARGEST = 30_000_000
"""Parameters of the largest model that is still tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """A tiny model that has run, with the inputs of that run."""

    model: PreTrainedModel
    config: PreTrainedConfig
    inputs: dict[str, Any]
    attempt: int
    """Which sizes it has: see `tiny_config`."""


def make_tiny(cls: type[PreTrainedModel], *, layers: int = 2, seed: int = 0, request: Request = Request()) -> Tiny:  # noqa: B008
    """A tiny random model of an upstream class, in evaluation mode, on the CPU, and inputs that it runs on.

    The smallest sizes are tried first; see `tiny_config`. The same arguments give the same weights and inputs.

    Raises:
        CannotShrinkError: no config could be made, or no model from it.
        CannotMakeInputsError: there are models, and none runs on the inputs that were made.
    """
    first: Exception | None = None
    # With all that the model takes first, if it has to be larger for it.
    whole = replace(
        request,
        images=1 if request.images is None else request.images,
        audios=1 if request.audios is None else request.audios,
    )
    tries = [(attempt, each) for each in dict.fromkeys((whole, request)) for attempt in range(ATTEMPTS)]
    hopeless: set[Request] = set()
    for attempt, asked in tries:
        if asked in hopeless:
            continue
        try:
            config = tiny_config(cls.config_class, layers=layers, attempt=attempt)
            return _lively(cls, _running(cls, config, seed, asked, attempt), seed, asked)
        except (CannotShrinkError, CannotMakeInputsError) as error:
            first = first or error
            if not _about_sizes(error):
                hopeless.add(asked)
    assert first
    raise first


def _running(cls: type[PreTrainedModel], config: PreTrainedConfig, seed: int, request: Request, attempt: int) -> Tiny:
    """A model that has run; fields that it misses in its configs are set where they can be."""
    while True:
        try:
            model = _made(cls, config, seed)
            return Tiny(model=model, config=config, inputs=make_inputs(model, request), attempt=attempt)
        except (CannotShrinkError, CannotMakeInputsError) as error:
            if not set_missed(config, error.__cause__):
                raise


def _lively(cls: type[PreTrainedModel], tiny: Tiny, seed: int, request: Request) -> Tiny:
    """The same with larger weights, where its outputs don't depend on its inputs and those of the other's do."""
    if _is_lively(tiny, request):
        return tiny
    for config in livelier(tiny.config):
        try:
            other = _running(cls, config, seed, request, tiny.attempt)
        except (CannotShrinkError, CannotMakeInputsError):
            continue
        if _is_lively(other, request):
            return other
    return tiny


def _is_lively(tiny: Tiny, request: Request) -> bool:
    return depends_on(tiny.model, tiny.inputs, make_inputs(tiny.model, replace(request, seed=request.seed + 1)))


def _about_sizes(error: Exception) -> bool:
    """Whether other sizes might help: not where a library, an argument or an attribute is missing."""
    cause = error.__cause__
    return (
        isinstance(cause, RuntimeError | ValueError | IndexError | ZeroDivisionError)
        or "parameters" in str(error)
        or "refuses the sizes" in str(error)
        or "NoneType" in str(error)
        or "empty()" in str(error)
    )


def _made(cls: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            size = sum(each.numel() for each in cls(config).parameters())
    except Exception:  # some can't be made there; made for real they may say why
        size = 0
    if size > _LARGEST:
        raise CannotShrinkError(f"{cls.__name__} would still have {size:,} parameters")
    torch.manual_seed(seed)
    try:
        return cls(config).eval()
    except Exception as error:
        line = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CannotShrinkError(f"{cls.__name__} can't be made: {line}") from error
