"""Copies and conversions of a generated model are what those of upstream's are."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch

from .context import Context, by_upstream


def deep_copy(context: Context) -> str | None:
    """A copy of its own, of the same class and options."""
    by_upstream(copy.deepcopy, context.pair.upstream)
    return _is_twin(copy.deepcopy(context.pair.generated), context.pair.generated)


def pickled(context: Context) -> str | None:
    """There and back through bytes. Of a fresh instance: what recorded hidden states can't be pickled, upstream's neither."""
    upstream, generated = (_fresh(each, context) for each in (context.pair.upstream, context.pair.generated))
    by_upstream(pickle.dumps, upstream)
    return _is_twin(pickle.loads(pickle.dumps(generated)), generated)


def moved(context: Context) -> str | None:
    """`to` gives the same dtypes and devices as upstream's."""
    return _converted(context, lambda model: model.to(torch.float64))


def halved(context: Context) -> str | None:
    """`half` gives the same dtypes as upstream's."""
    return _converted(context, lambda model: model.half())


def _converted(context: Context, convert: Any) -> str | None:
    theirs = by_upstream(lambda model: convert(copy.deepcopy(model)), context.pair.upstream)
    ours = convert(copy.deepcopy(context.pair.generated))
    expected, found = (
        {name: (value.dtype, value.device) for name, value in each.state_dict().items()} for each in (theirs, ours)
    )
    return (
        None
        if expected == found
        else f"dtypes or devices differ: {sorted(map(str, expected.items() ^ found.items()))[:2]}"
    )


def _fresh(model: Any, context: Context) -> Any:
    with context.pair.runtime.options(backend="eager"):
        return type(model)(copy.deepcopy(context.pair.config))


def _is_twin(twin: Any, generated: Any) -> str | None:
    if type(twin) is not type(generated):
        return f"it is a {type(twin).__name__}"
    if twin.vgen_options != generated.vgen_options:
        return "it has other options"
    ours, theirs = twin.state_dict(), generated.state_dict()
    if list(ours) != list(theirs):
        return "its state_dict differs"
    for name, value in ours.items():
        if not (torch.equal(value, theirs[name]) or bool((value != value).any())):
            return f"{name} has other values"
        if value.numel() and value.data_ptr() == theirs[name].data_ptr():
            return f"{name} shares memory with the original"
    return None
