"""Builds again what is on disk, in memory, to see how it would change: the work of `vgen diff` and `vgen check`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import output
from .cached import generate
from .compare import Drift, compare
from .decisions import from_rows
from .errors import VgenError
from .local import COPIES
from .lock import LOCK_NAME, changes, parse_lock
from .package import Options, Package
from .plan import Granularity
from .source import Source
from .target import Target, copied, is_path, located, target


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One folder against a build: `reasons` say what changed in what it is made from, a line each."""

    folder: Path
    drifts: tuple[Drift, ...]
    reasons: tuple[str, ...]
    is_own_copy: bool = False
    """Whether what it was built from wasn't to be found, so that the package's own copies were read."""

    @property
    def label(self) -> str:
        """The folder as seen from the working directory where it lies below, else its name; forward slashes."""
        path = os.path.relpath(self.folder, Path.cwd())
        return self.folder.name if path.startswith(os.pardir) else Path(path).as_posix()


def compare_all(models: Sequence[str], out: Path | None, source: Source, *, version: str) -> tuple[Comparison, ...]:
    """Build the models named, or every built one, as their locks say, and compare with what is below `out`.

    A name may be a path, or that of a package in `out`, whose lock then says what it was built from. Without `out`, packages are
    where a build puts them by itself.

    Raises:
        VgenError: `broken-lock`, `nothing-built`, and whatever a build raises.
    """
    folders = output.folders_of(out)
    wanted = [_named(model, out, source) for model in models] or all_built(out, source)
    if not wanted:
        places = " or ".join(map(str, folders))
        raise VgenError(
            "nothing-built", f"No package is built in {places}.", hint="`vgen build MODEL` writes one there."
        )
    targets = {folder / target.model: target for target, folder in wanted}
    packages = {folder: _rebuild(target, folder) for folder, target in targets.items()}
    comparisons = []
    for parent in dict.fromkeys(folder for _, folder in wanted):
        of_parent = [package for folder, package in packages.items() if folder.parent == parent]
        for folder, files in output.folders(of_parent, parent, version=version):
            package, target = packages.get(folder), targets.get(folder)
            own = target.source.local if target is not None else None
            comparisons.append(
                Comparison(
                    folder=folder,
                    drifts=compare(folder, files),
                    reasons=_reasons(folder, package) if package is not None else (),
                    is_own_copy=own is not None and own.folder == (folder / COPIES).resolve(),
                )
            )
    return tuple(comparisons)


def all_built(out: Path | None, source: Source) -> list[tuple[Target, Path]]:
    """Every built package, as what it is built from, and the folder that it is in.

    Raises:
        VgenError: `broken-lock`, and as `target`.
    """
    packages = [(package, folder) for folder in output.folders_of(out) for package in output.built(folder)]
    return [(_built(package.model, package.folder, source), folder) for package, folder in packages]


def _named(model: str, out: Path | None, source: Source) -> tuple[Target, Path]:
    """What a name stands for, and the folder that its package is in."""
    if not is_path(model) and model.isidentifier():
        for folder in output.folders_of(out):
            if (folder / model / LOCK_NAME).is_file():
                return _built(model, folder / model, source), folder
    found = target(model, source)
    folder = out or output.folder_for([found.is_local])
    return located(found, folder / found.model), folder


def _built(model: str, folder: Path, source: Source) -> Target:
    lock = output.lock_of(folder)
    if lock is None or lock.copied is None:
        return Target(model=source.resolve_model(model), source=source)
    return copied(folder, lock, source)


def _rebuild(target: Target, folder: Path) -> Package:
    lock, model, source = output.lock_of(folder), target.model, target.source
    if lock is None:
        return generate(model, source)
    if lock.model != model:
        raise VgenError(
            "renamed-package",
            f"{folder / LOCK_NAME} is the lock of {lock.model}, but its folder is named {model}.",
            hint=f"Rename the folder to {lock.model}: generated packages find each other by name.",
        )
    options = Options(
        granularity=Granularity(lock.granularity),
        standalone=lock.standalone,
        decisions=((model, from_rows(lock.decisions)),),
    )
    return generate(model, source, options)


def _reasons(folder: Path, package: Package) -> tuple[str, ...]:
    old = output.lock_of(folder)
    new = parse_lock(package.files[LOCK_NAME], folder / LOCK_NAME)
    return changes(old, new) if old is not None else ()
