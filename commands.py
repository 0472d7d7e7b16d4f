"""What commands have in common, and the work of the two that have two forms: `build --all` and `diff --from`.

As in `cli`, everything heavy is imported where it is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import __version__

if TYPE_CHECKING:
    from .codegen.package import Options
    from .codegen.rebuild import Comparison
    from .codegen.source import Source

SAME, DRIFT, FAILED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""


def source_of(transformers: Path | None) -> Source:
    from .codegen import source

    return source.installed() if transformers is None else source.folder(transformers)


def options_of(source: Source, granularity: str = "auto", *, standalone: bool = False) -> Options:
    """What the user chooses: on the command line, and in the project that it is run in."""
    from .codegen.decisions import read_decisions
    from .codegen.package import Options
    from .codegen.plan import Granularity

    decided = tuple(read_decisions(Path.cwd(), source.models()).items())
    return Options(granularity=Granularity(granularity), standalone=standalone, decisions=decided)


def compare(models: Sequence[str], out: Path | None, transformers: Path | None) -> tuple[Comparison, ...]:
    from .codegen import rebuild

    return rebuild.compare_all(models, out, source_of(transformers), version=__version__)


def steps(total: int) -> AbstractContextManager[Callable[[str], None]]:
    """A bar where several models are built and somebody watches."""
    if total < 2 or not sys.stderr.isatty():
        return nullcontext(lambda model: None)
    from .codegen.show.summary import progress

    return progress(total)


def bar(weights: Mapping[str, int]) -> AbstractContextManager[Callable[[str, bool], None]]:
    """A bar with an estimate, where somebody watches."""
    if not sys.stderr.isatty():
        return nullcontext(lambda model, done: None)
    from .codegen.show.progress import estimated

    return estimated(weights)


def estimate(source: Source, models: Sequence[str]) -> AbstractContextManager[Callable[[str, bool], None]]:
    """A bar for a build: a model takes about as long as its file is large."""
    return bar({model: source.size(model) for model in models})


def build_all(source: Source, options: Options, out: Path, *, force: bool, jobs: int | None, as_json: bool) -> int:
    """The exit code of `build --all`."""
    from .codegen.show.sweep import Totals, print_sweep, sweep_json
    from .codegen.sweep import is_success, sweep

    models, totals = source.models(), Totals()
    with estimate(source, models) as step:
        results = totals.watch(sweep(models, source, options, out, force=force, jobs=jobs, step=step))
        text = sweep_json(results, out) if as_json else None
        for _ in results:
            pass  # counted as it passes
    if text is not None:
        click.echo(text, nl=False)
    else:
        print_sweep(totals, out)
    return SAME if is_success(totals.failures) else DRIFT


def upgrade(models: Sequence[str], old: str, new: str, *, download: bool, text: bool, as_json: bool) -> int:
    """The exit code of `diff --from --to`."""
    from .codegen import upgrade as releases
    from .codegen.release import opened
    from .codegen.show import semantic

    with opened(old, download=download) as before, opened(new, download=download) as after:
        wanted, options = releases.resolve(models, before, after), options_of(after)
        with steps(2 * len(wanted)) as step:
            found = tuple(releases.upgrades(wanted, before, after, options, step))
    versions = (before.version, after.version)
    if as_json:
        click.echo(semantic.upgrades_json(found, versions, models=len(wanted), text=text), nl=False)
    else:
        semantic.print_upgrades(found, versions, models=len(wanted), text=text)
    return DRIFT if found else SAME
