"""The generated model is upstream's to everybody who looks at it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..pair import upstream_of
from .context import Context


def instances(context: Context) -> str | None:
    """Every module is an instance of upstream's class of the same name, and forwards take the same arguments."""
    upstream, generated = context.pair.upstream, context.pair.generated
    theirs, ours = list(upstream.named_modules()), list(generated.named_modules())
    if [name for name, _ in theirs] != [name for name, _ in ours]:
        return f"its modules differ: {sorted({name for name, _ in theirs} ^ {name for name, _ in ours})[:3]}"
    for (name, other), (_, part) in zip(theirs, ours, strict=True):
        # A parametrized module has a class of its own, made for that one instance.
        if not isinstance(part, _declared(other)):
            return f"{name} is a {type(part).__name__}, which isn't a subclass of upstream's {type(other).__name__}"
    expected, found = (_parameters(cls) for cls in (upstream_of(context.cls), context.cls))
    if expected != found:
        return f"its forward takes {found}, upstream's {expected}"
    return None


def _declared(module: nn.Module) -> type[nn.Module]:
    cls = type(module)
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls


def state(context: Context) -> str | None:
    """The same names, shapes and dtypes, in the same order."""
    theirs, ours = (
        [(name, tuple(value.shape), value.dtype) for name, value in each.state_dict().items()]
        for each in (context.pair.upstream, context.pair.generated)
    )
    if theirs != ours:
        return f"its state_dict differs: {sorted({str(each) for each in theirs} ^ {str(each) for each in ours})[:3]}"
    return None


def tied_weights(context: Context) -> str | None:
    """The same parameters share memory."""
    theirs, ours = (_shared(each) for each in (context.pair.upstream, context.pair.generated))
    return None if theirs == ours else f"shared weights differ: {sorted(theirs ^ ours)[:3]}"


def equal_seeds(context: Context) -> str | None:
    """One seed gives both classes the same weights."""
    return None if context.pair.same_weights else "one seed gives other weights than upstream's class"


def _shared(model: Any) -> set[tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {tuple(sorted(group)) for group in names.values() if len(group) > 1}


def _parameters(cls: Any) -> list[str]:
    return list(inspect.signature(cls.forward).parameters)
