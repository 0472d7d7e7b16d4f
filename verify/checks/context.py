"""What a check looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..pair import Pair, one_line
from .hooks import HookWatch


class NotApplicableError(Exception):
    """Upstream's own model can't do what is asked; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Both models after the sweep, the generated class, and the hooks that were watched in it and in upstream's."""

    pair: Pair
    cls: Any
    hooks: tuple[HookWatch, HookWatch] | None


def by_upstream(what: Callable[[Any], Any], upstream: Any) -> Any:
    """What upstream's model gives.

    Raises:
        NotApplicableError: It raises.
    """
    try:
        return what(upstream)
    except Exception as error:
        raise NotApplicableError(f"upstream: {one_line(error)}") from error
