"""The processes that build: each takes a few models at a time, remembers the results, and hands them back as bytes."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

from .cache import Cache, cache_of
from .codec import decode, encode
from .errors import VgenError
from .package import Failure, Options, Package
from .source import Source

CHUNK = 8
"""Models handed out together. Fewer start the formatter more often, more leave one process alone at the end."""

Report = Callable[[str, bool], None]
"""Told the name of a model, and whether it is done or only begun."""


def build_chunk(
    models: Sequence[str], source: Source, options: Options, cache: Cache | None, report: Report
) -> tuple[Package | Failure, ...]:
    """Build models in this process, and remember the results.

    Raises:
        VgenError: `formatter`.
    """
    from . import build

    read: dict[str, Mapping[str, str | None]] = {}

    def fresh() -> Iterator[tuple[str, Source]]:
        for model in models:
            report(model, False)
            each = source.fresh()
            yield model, each
            read[model] = each.read
            each.forget()
            report(model, True)

    results = build.build_chunk(fresh(), options)
    for model, result in zip(models, results, strict=True):
        if cache is not None:
            cache.keep(model, options, read[model], result)
    return results


class Pool:
    """Builds models in other processes, from now on.

    Raises `VgenError` "worker-died" where one of them ends without an answer.
    """

    def __init__(
        self,
        models: Sequence[str],
        source: Source,
        options: Options,
        jobs: int,
        runtime_files: Mapping[str, str],
        report: Report,
    ) -> None:
        self.runtime_files = runtime_files
        self.report = report
        self.source = source
        self.options = options
        # A fork would copy threads in the middle of what they do, those of a progress bar for one.
        context = multiprocessing.get_context("spawn")
        self.news: SimpleQueue[tuple[str, bool]] = context.SimpleQueue()
        self.stop = context.Event()
        self.executor = ProcessPoolExecutor(
            jobs,
            mp_context=context,
            initializer=_begin,
            initargs=(str(source.root), source.version, options, self.news, self.stop),
        )
        self.futures: dict[str, tuple[int, Future[list[bytes]]]] = {}
        for first in range(0, len(models), CHUNK):
            chunk = tuple(models[first : first + CHUNK])
            future = self.executor.submit(_work, chunk)
            self.futures.update({model: (index, future) for index, model in enumerate(chunk)})

    def result(self, model: str) -> Package | Failure:
        if model not in self.futures:
            return build_chunk((model,), self.source, self.options, cache_of(self.source), self.report)[0]
        index, future = self.futures.pop(model)
        while not wait([future], timeout=0.1).done:
            self._tell()
        self._tell()
        try:
            return decode(future.result()[index], self.runtime_files)
        except BrokenProcessPool as error:
            raise VgenError(
                "worker-died",
                "A process that was building models ended without an answer; the system may have run out of memory.",
                hint="Free some memory, or use fewer processes with --jobs 1. What was built is remembered.",
            ) from error

    def close(self) -> None:
        """End the processes. What they have begun is of no use where somebody wants to leave: they stop at the next model."""
        self.stop.set()
        self.executor.shutdown(wait=True, cancel_futures=True)

    def _tell(self) -> None:
        while not self.news.empty():
            self.report(*self.news.get())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    """What one of the processes works with."""

    source: Source
    options: Options
    cache: Cache | None
    news: SimpleQueue[tuple[str, bool]]
    stop: Event


class _StoppedError(Exception):
    """Nobody waits for the result any more."""


_worker: _Worker | None = None


def _begin(root: str, version: str, options: Options, news: SimpleQueue[tuple[str, bool]], stop: Event) -> None:
    global _worker
    # Ctrl-C goes to every process of the terminal: the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from . import build  # noqa: F401 (imported before the first model, and frozen with the rest below)

    # As in `cli.main`: trees are many objects and few cycles, and the hunt for these would take longer than the build.
    gc.freeze()
    gc.set_threshold(1_000_000)
    source = Source(root=Path(root), version=version)
    _worker = _Worker(source=source, options=options, cache=cache_of(source), news=news, stop=stop)


def _work(models: tuple[str, ...]) -> list[bytes]:
    assert _worker is not None
    worker = _worker

    def report(model: str, done: bool) -> None:
        if worker.stop.is_set():
            raise _StoppedError
        worker.news.put((model, done))

    results = build_chunk(models, worker.source, worker.options, worker.cache, report)
    return [encode(result) for result in results]
