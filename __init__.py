"""Compiled subclasses of Transformers models, generated as Python source: `vgen build`, then `vgen.load`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runtime import load as load

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    # Late, because the command line must start without torch.
    if name == "load":
        from .runtime import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
