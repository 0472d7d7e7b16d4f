"""Builds and writes many models, each package all or nothing by itself: one that can't be had doesn't stop the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from . import output
from .compare import python_files
from .errors import VgenError
from .package import NO_REGION, Failure, Options, Package, failure
from .parallel import Step, build_all
from .publish import Published, publish
from .source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A package on disk."""

    package: Package
    report: Published


Result = Written | Failure | Published
"""What became of a model; `Published` is the runtime of packages that stand alone."""


def sweep(
    models: Sequence[str], source: Source, options: Options, out: Path, *, force: bool, jobs: int | None, step: Step
) -> Iterator[Result]:
    """What became of each model, in the order given; before the first package that needs one, of their runtime.

    Raises:
        VgenError: `worker-died`, `formatter`; and what `publish` raises, for the runtime.
    """
    has_runtime = False
    for result in build_all(models, source, options, jobs=jobs, step=step):
        if isinstance(result, Failure):
            yield result
            continue
        own = out / result.model
        folders = dict(output.folders((result,), out, version=__version__))
        files = folders.pop(own)
        if folders and not has_runtime:
            yield from publish(tuple(folders.items()), force=force)
            has_runtime = True
        written: Written | Failure
        try:
            report = _same(own, files, force=force) or publish([(own, files)], force=force)[0]
            written = Written(package=result, report=report)
        except VgenError as error:
            written = failure(result.model, source, error)
        yield written


def is_success(failures: Iterable[Failure]) -> bool:
    """Whether everything that has something to compile was written."""
    return all(failure.code == NO_REGION for failure in failures)


def _same(folder: Path, files: Mapping[str, str], *, force: bool) -> Published | None:
    """The report where the folder holds these very files already. Their lock is among them, so it lists no others."""
    try:
        if any((folder / name).read_bytes() != text.encode() for name, text in files.items()):
            return None
    except OSError:
        return None
    extra = tuple(sorted(python_files(folder) - set(files)))
    if extra and force:
        return None
    return Published(folder=folder, written=(), unchanged=tuple(sorted(files)), removed=(), kept=extra)
