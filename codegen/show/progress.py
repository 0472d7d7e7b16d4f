"""The bar of a build of everything: which model is at work, how many are done, how long the rest will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Step = Callable[[str, bool], None]
"""Told a model, and whether it is done or only begun."""


@contextmanager
def estimated(weights: Mapping[str, int]) -> Iterator[Step]:
    """A bar on standard error, for work of these sizes; it goes when the work is done.

    What is done without having begun was in the cache: it took no time, and no part in the estimate.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.fields[models]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        total = sum(weights.values())
        task = bar.add_task("", total=total, done=0, models=len(weights))
        begun: dict[str, None] = {}
        done: set[str] = set()

        def step(model: str, finished: bool) -> None:
            nonlocal total
            if not finished:
                begun[model] = None
            elif model in begun:
                del begun[model]
                done.add(model)
                bar.advance(task, weights[model])
            else:
                done.add(model)
                total -= weights[model]
            bar.update(task, description=next(reversed(begun), model), total=total, done=len(done))

        yield step
