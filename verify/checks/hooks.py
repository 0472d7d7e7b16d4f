"""Hooks on a child of a region fire as often as upstream's do, or the region says that it ran uncompiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn


class HookWatch:
    """Counts, while it is open, how often a hook on a norm of each region fires.

    Args:
        model: The model to hook.
        regions: The names of its regions.
        counters: The runtime's counters, None for upstream's model.
    """

    def __init__(
        self, model: nn.Module, regions: Iterable[str], counters: Callable[[], Mapping[str, Any]] | None
    ) -> None:
        self.fired: dict[str, list[int]] = {}
        self._model = model
        self._counters = counters
        self._before = dict(counters()) if counters else {}
        self._after: dict[str, Any] = {}
        self._handles: list[Any] = []
        for name in regions:
            child = _norm(model.get_submodule(name))
            if child is not None:
                self._handles.append(child.register_forward_hook(_counter(self.fired.setdefault(name, []))))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._after = dict(self._counters()) if self._counters else {}

    def problem(self, upstream: HookWatch) -> str | None:
        """Where a hook fired on upstream's model, and neither fired here nor made the region run uncompiled."""
        for name, fired in self.fired.items():
            part: Any = self._model.get_submodule(name)
            tag = part.region.tag_of(part)
            after, before = self._after.get(tag), self._before.get(tag)
            if after is None or not upstream.fired.get(name):
                continue
            fell = sum(after.fallbacks.values()) - (sum(before.fallbacks.values()) if before else 0)
            if not fired and not fell:
                return f"a hook on a child of {name or type(part).__name__} didn't fire, and the region doesn't say so"
        return None


def _norm(region: nn.Module) -> nn.Module | None:
    """The first norm: whole models are hooked there, to record or to change activations."""
    for child in region.modules():
        if isinstance(child, nn.LayerNorm) or type(child).__name__.endswith("RMSNorm"):
            return child
    return None


def _counter(fired: list[int]) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        fired.append(1)

    return hook
