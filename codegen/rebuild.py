"""Builds again what is on disk, in memory, to see how it would change: the work of `vgen diff` and `vgen check`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import output
from .cached import generate
from .compare import Drift, compare
from .errors import VgenError
from .lock import LOCK_NAME, changes, parse_lock
from .package import Package
from .plan import Granularity
from .source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One folder against a build: `reasons` say what changed in what it is made from, a line each."""

    folder: Path
    drifts: tuple[Drift, ...]
    reasons: tuple[str, ...]

    @property
    def label(self) -> str:
        """The folder as seen from the working directory where it lies below, else its name; forward slashes."""
        path = os.path.relpath(self.folder, Path.cwd())
        return self.folder.name if path.startswith(os.pardir) else Path(path).as_posix()


def resolve(models: Iterable[str], source: Source) -> tuple[str, ...]:
    """The folders of the models named, each once.

    Raises:
        VgenError: `unknown-model`.
    """
    return tuple(dict.fromkeys(source.resolve_model(model) for model in models))


def compare_all(models: Sequence[str], out: Path, source: Source, *, version: str) -> tuple[Comparison, ...]:
    """Build the models named, or every built one, as their locks say, and compare with what is below `out`.

    Raises:
        VgenError: `broken-lock`, `nothing-built`, and whatever a build raises.
    """
    wanted = resolve(models, source) or tuple(package.model for package in output.built(out))
    if not wanted:
        raise VgenError("nothing-built", f"No package is built in {out}.", hint="`vgen build MODEL` writes one there.")
    packages = {out / model: _rebuild(model, out / model, source) for model in wanted}
    comparisons = []
    for folder, files in output.folders(packages.values(), out, version=version):
        package = packages.get(folder)
        reasons = _reasons(folder, package) if package is not None else ()
        comparisons.append(Comparison(folder=folder, drifts=compare(folder, files), reasons=reasons))
    return tuple(comparisons)


def _rebuild(model: str, folder: Path, source: Source) -> Package:
    lock = output.lock_of(folder)
    if lock is None:
        return generate(model, source)
    if lock.model != model:
        raise VgenError(
            "renamed-package",
            f"{folder / LOCK_NAME} is the lock of {lock.model}, but its folder is named {model}.",
            hint=f"Rename the folder to {lock.model}: generated packages find each other by name.",
        )
    return generate(model, source, granularity=Granularity(lock.granularity), standalone=lock.standalone)


def _reasons(folder: Path, package: Package) -> tuple[str, ...]:
    old = output.lock_of(folder)
    new = parse_lock(package.files[LOCK_NAME], folder / LOCK_NAME)
    return changes(old, new) if old is not None else ()
