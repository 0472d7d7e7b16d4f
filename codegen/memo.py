"""Remembers what a function found in the object that it was asked about, and for no longer than that object lives.

`functools.cache` on a function would hold every source, and every syntax tree read from it, until the process ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar


class Remembers(Protocol):
    """`memo` is for `remembered` alone."""

    @property
    def memo(self) -> dict[object, Any]: ...


Holder = TypeVar("Holder", bound=Remembers)
Rest = ParamSpec("Rest")
Found = TypeVar("Found")


def remembered(function: Callable[Concatenate[Holder, Rest], Found]) -> Callable[Concatenate[Holder, Rest], Found]:
    """Call the function once for each set of arguments. The first one keeps the result; the others must be hashable."""

    @wraps(function)
    def once(holder: Holder, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Found:
        key = (function, args, tuple(kwargs.items())) if kwargs else (function, args)
        memo = holder.memo
        if key not in memo:
            memo[key] = function(holder, *args, **kwargs)
        found: Found = memo[key]
        return found

    return once
