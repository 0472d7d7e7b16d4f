"""Where packages are written, which ones are there already, and how a user imports them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import VgenError
from .lock import LOCK_NAME, OWN, Lock, read_lock, render_runtime_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .build import Package

DEFAULT = "vgen.generated"
LOCAL = Path("generated")
"""Where the packages of models outside of Transformers go, seen from the working directory."""
RUNTIME = "vgen_runtime"
"""The folder of a standalone copy of the runtime, beside the packages that use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A generated package on disk; `lock` is None where it can't be read, and `problem` says why."""

    model: str
    folder: Path
    lock: Lock | None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How to import what was built: lines of Python, and what must hold for them to work."""

    import_line: str
    load_line: str
    condition: str | None = None


def default_folder() -> Path:
    """The folder of the installed `vgen.generated`."""
    return OWN


def folder_for(is_local: Sequence[bool]) -> Path:
    """Where packages go when the user names no folder: vgen's own for models of Transformers, `generated` in the working
    directory for others.

    Raises:
        VgenError: `no-folder`, where that isn't one folder, or is vgen's own.
    """
    if not any(is_local):
        return default_folder()
    if not all(is_local):
        raise VgenError(
            "no-folder",
            "Packages of Transformers' models go to vgen's own folder, those of other files to ./generated.",
            hint="Choose one folder for all of them with --out, or build them one after the other.",
        )
    if LOCAL.resolve() == default_folder():
        raise VgenError(
            "no-folder",
            "./generated is vgen's own folder here, which is for models of Transformers.",
            hint="Choose another folder with --out.",
        )
    return LOCAL


def folders_of(out: Path | None) -> tuple[Path, ...]:
    """Where built packages are looked for: where the user says, else in both places that a build writes to by itself."""
    if out is not None:
        return (out,)
    return (default_folder(),) if LOCAL.resolve() == default_folder() else (default_folder(), LOCAL)


def built(folder: Path) -> tuple[Built, ...]:
    """Every generated package of a folder, by name. A broken lock is told, not raised."""
    if not folder.is_dir():
        return ()
    found = []
    for path in sorted(folder.iterdir()):
        if path.name != RUNTIME and (path / LOCK_NAME).is_file():
            try:
                lock = read_lock(path / LOCK_NAME)
            except VgenError as error:
                found.append(Built(model=path.name, folder=path, lock=None, problem=str(error)))
            else:
                found.append(Built(model=path.name, folder=path, lock=lock))
    return tuple(found)


def lock_of(folder: Path) -> Lock | None:
    """The lock of a package's folder, None where the package isn't built.

    Raises:
        VgenError: `broken-lock`.
    """
    path = folder / LOCK_NAME
    return read_lock(path) if path.exists() else None


def folders(packages: Iterable[Package], out: Path, *, version: str) -> tuple[tuple[Path, Mapping[str, str]], ...]:
    """What to publish: each package's folder with its files, and the runtime's where packages stand alone."""
    found: dict[Path, dict[str, str]] = {}
    runtime: dict[str, str] = {}
    for package in packages:
        found[out / package.model] = dict(package.files)
        runtime.update({path.removeprefix(f"{RUNTIME}/"): text for path, text in package.runtime_files.items()})
    if runtime:
        from .lock import digest

        runtime.pop(LOCK_NAME, None)
        outputs = {path: digest(text) for path, text in runtime.items()}
        found[out / RUNTIME] = {**runtime, LOCK_NAME: render_runtime_lock(version, outputs)}
    return tuple(found.items())


def main_entry(names: Iterable[str]) -> str:
    """The entry class that most users load: the one that generates, else the first with a head, else the first."""
    names = list(names)
    for wanted in ("ForConditionalGeneration", "ForCausalLM", "For"):
        for name in names:
            if name.endswith(wanted) or (wanted == "For" and "For" in name):
                return name
    return names[0]


def usage(package: Package, out: Path) -> Usage:
    """The import line for a package that was written below `out`, seen from the working directory."""
    entry = main_entry(ref.name for ref in package.plan.entries)
    if out.resolve() == default_folder():
        return Usage(
            import_line=f"from {DEFAULT}.{package.model} import {entry}",
            load_line='vgen.load("name-or-path")',
        )
    dotted, condition = _dotted(out)
    prefix = f"{dotted}." if dotted else ""
    if package.runtime_files:
        load_line = f'{prefix}{RUNTIME}.load("name-or-path")'
    else:
        load_line = f'vgen.load("name-or-path", generated="{dotted}")' if dotted else ""
    return Usage(import_line=f"from {prefix}{package.model} import {entry}", load_line=load_line, condition=condition)


def _dotted(out: Path) -> tuple[str, str | None]:
    """The dotted name of a folder, and what must be done so that Python finds it, if anything.

    A folder inside a package is named from that package's top; any other from the working directory.
    """
    folder = out.resolve()
    top = folder
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    root = top.parent if top != folder else Path.cwd()
    relative = os.path.relpath(folder, root)
    parts = () if relative == os.curdir else Path(relative).parts
    if all(part.isidentifier() for part in parts):
        condition = None if root == Path.cwd() else f"{root} on Python's path"
        return ".".join(parts), condition
    if folder.name.isidentifier():
        return folder.name, f"{folder.parent} on Python's path"
    return "", f"{folder} on Python's path"
