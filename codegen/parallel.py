"""Many models at once: what the cache has is read, the rest is built, by several processes where it is much."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Protocol

from .cache import Cache, cache_of
from .package import Failure, Options, Package, runtime_files
from .source import Source
from .workers import Pool, build_chunk

MOST_JOBS = 4
"""A process takes some 200 to 300 MB: more would make a build of everything a burden on a small machine."""
FEW = 16
"""Up to this many models are built before further processes have started."""

Step = Callable[[str, bool], None]
"""Told the name of a model, and whether it is done or only begun."""


class _Builder(Protocol):
    def result(self, model: str) -> Package | Failure:
        """Build the model, or wait until it is built."""
        ...

    def close(self) -> None: ...


def default_jobs() -> int:
    """As many as there are processors for this process, within reason."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, MOST_JOBS)


def build_all(
    models: Sequence[str],
    source: Source,
    options: Options | None = None,
    *,
    jobs: int | None = None,
    step: Step = lambda model, done: None,
) -> Iterator[Package | Failure]:
    """Each model's package, or why there is none, in the order given.

    Raises:
        VgenError: `worker-died`, `formatter`.
    """
    options = options or Options()
    cache, runtime = cache_of(source), runtime_files(options)
    keys = {model: key for model in models if cache is not None and (key := cache.key(model, options)) is not None}
    missing = [model for model in models if model not in keys]
    for model in keys:
        step(model, True)
    jobs = jobs or default_jobs()
    builder: _Builder
    if jobs > 1 and len(missing) > FEW:
        builder = Pool(missing, source, options, jobs, runtime, step)
    else:
        builder = _Here(missing, source, options, cache, step)
    with closing(builder):
        for model in models:
            known = cache.load(keys[model], runtime) if cache is not None and model in keys else None
            yield known if known is not None else builder.result(model)
    if cache is not None and missing:
        cache.trim()


class _Here:
    """Builds in this process, all that is missing when the first of it is asked for."""

    def __init__(
        self, missing: Sequence[str], source: Source, options: Options, cache: Cache | None, step: Step
    ) -> None:
        self.missing = tuple(missing)
        self.source = source
        self.options = options
        self.cache = cache
        self.step = step
        self.results: dict[str, Package | Failure] = {}

    def result(self, model: str) -> Package | Failure:
        if model not in self.results:
            wanted = self.missing if model in self.missing else (model,)
            built = build_chunk(wanted, self.source, self.options, self.cache, self.step)
            self.results.update(zip(wanted, built, strict=True))
        return self.results[model]

    def close(self) -> None:
        self.results.clear()
