"""Every model of a Transformers, built in memory, or the reason why it can't be: what the report and an upgrade ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from .package import Failure, Options, Package
from .parallel import build_all
from .source import Source

__all__ = ["Failure", "all_packages"]


def all_packages(
    source: Source,
    models: Iterable[str] | None = None,
    options: Options | None = None,
    *,
    step: Callable[[str], None] = lambda model: None,
) -> Iterator[Package | Failure]:
    """Build `models`, or all, in that order; one that can't be built doesn't stop the others.

    `step` is told each model once it is built.
    """

    def told(model: str, done: bool) -> None:
        if done:
            step(model)

    wanted = source.models() if models is None else tuple(models)
    yield from build_all(wanted, source, options, step=told)
