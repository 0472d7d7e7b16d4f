"""Upstream's model and the generated one, with the same weights."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

SEED = 10


class UnprovedError(Exception):
    """Upstream gives nothing to compare with; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The runtime that a generated class uses: vgen's, or the copy beside a package that stands alone."""

    module: ModuleType

    @property
    def counters(self) -> Callable[[], Mapping[str, Any]]:
        found: Callable[[], Mapping[str, Any]] = self.module.counters
        return found

    @property
    def reset(self) -> Callable[[], None]:
        found: Callable[[], None] = self.module.reset_counters
        return found

    def options(self, **options: Any) -> AbstractContextManager[Any]:
        found: AbstractContextManager[Any] = self.module.options(**options)
        return found


def runtime_of(generated: type) -> Runtime:
    """Raises LookupError where the class isn't generated."""
    for cls in generated.__mro__:
        if cls.__name__ == "AsUpstream":
            return Runtime(module=importlib.import_module(cls.__module__.rpartition(".")[0]))
    raise LookupError(f"{generated.__module__}.{generated.__qualname__} isn't a generated class")


def upstream_of(generated: type) -> Any:
    """The class of Transformers that a generated one subclasses."""
    for cls in generated.__mro__:
        if cls.__module__.startswith("transformers."):
            return cls
    raise LookupError(f"{generated.__module__}.{generated.__qualname__} isn't a subclass of Transformers' classes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both models, in eval mode, and their config; `regions` are the names of the generated one's compiled modules."""

    upstream: Any
    generated: Any
    config: Any
    runtime: Runtime
    regions: tuple[str, ...]
    same_weights: bool
    """Whether one seed gave both the same weights."""

    @property
    def steady(self) -> tuple[str, ...]:
        """Those that are regions in eval mode too: layers may be regions in training only."""
        return tuple(name for name in self.regions if not self._region(name).only_in_training)

    def _region(self, name: str) -> Any:
        return self.generated.get_submodule(name).region

    @property
    def tags(self) -> Mapping[str, tuple[str, str]]:
        """Compile tag → class and role."""
        found = {}
        for name in self.regions:
            part = self.generated.get_submodule(name)
            tag = part.region.tag_of(part)
            role = part.region.role.value
            found[tag] = (type(part).__name__, tag.rpartition(".")[2] if role == "either" else role)
        return found


def make_pair(generated_class: Any, config: Any, *, backend: str, device: str, dtype: torch.dtype) -> Pair:
    """Make both from one seed.

    Raises:
        UnprovedError: Upstream can't be made from that config.
        Exception: What the generated class raises where upstream's doesn't.
    """
    upstream_class, runtime = upstream_of(generated_class), runtime_of(generated_class)
    torch.manual_seed(SEED)
    try:
        upstream = upstream_class(copy.deepcopy(config))
    except Exception as error:
        raise UnprovedError(f"upstream can't be made from its tiny config: {one_line(error)}") from error
    torch.manual_seed(SEED)
    with runtime.options(backend=backend, compile_mm_encoder=True):
        generated = generated_class(copy.deepcopy(config))
    ours, theirs = generated.state_dict(), upstream.state_dict()
    same = list(ours) == list(theirs) and all(_same(ours[name], theirs[name]) for name in ours)
    if not same and list(ours) == list(theirs):
        generated.load_state_dict(theirs)
    upstream, generated = (each.to(device=device, dtype=dtype).eval() for each in (upstream, generated))
    compiled: Any = runtime.module.Compiled
    regions = tuple(name for name, part in generated.named_modules() if isinstance(part, compiled))
    for name in regions:
        # Layers share what they compile, also with those of a model that was proved before.
        generated.get_submodule(name).region.forget()
    return Pair(
        upstream=upstream,
        generated=generated,
        config=config,
        runtime=runtime,
        regions=regions,
        same_weights=same,
    )


def one_line(error: BaseException) -> str:
    """The type and the first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other) or ((one == other) | (one != one)).all())
