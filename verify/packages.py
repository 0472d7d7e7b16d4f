"""The generated packages of a folder: how they are imported, and what stands for their contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..codegen import output
from ..codegen.errors import VgenError


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Where packages lie.

    Attributes:
        path: The folder that holds the packages.
        root: What has to be on Python's path.
        dotted: The folder's name from there; empty where the packages lie in `root` itself.
    """

    path: Path
    root: Path
    dotted: str

    def module(self, model: str) -> str:
        return f"{self.dotted}.{model}" if self.dotted else model


def find_folder(path: Path) -> Folder:
    """A folder inside a package is imported by its full name, any other by its own."""
    path = path.resolve()
    if path == output.default_folder():
        return Folder(path=path, root=path.parent, dotted=output.DEFAULT)
    top = path
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    parts = path.relative_to(top.parent).parts
    if all(part.isidentifier() for part in parts):
        return Folder(path=path, root=top.parent, dotted=".".join(parts))
    return Folder(path=path, root=path, dotted="")


def select(path: Path, models: Iterable[str], *, everything: bool) -> tuple[str, ...]:
    """The packages to verify, sorted.

    Raises:
        VgenError: `not-built`: a model has no package there, or nothing has.
    """
    built = {package.model for package in output.built(path)}
    if everything:
        if not built:
            raise VgenError(
                "not-built",
                f"There is no generated package in {path}.",
                hint=f"`vgen build --all --out {path}` writes them, or name another folder with --out.",
            )
        return tuple(sorted(built))
    wanted = {model.replace("-", "_") for model in models}
    if missing := sorted(wanted - built):
        raise VgenError(
            "not-built",
            f"{', '.join(missing)}: there is no such package in {path}.",
            hint=f"`vgen build {' '.join(missing)}` writes it, `vgen list` says what is there, and --out names another folder.",
        )
    return tuple(sorted(wanted))


def digest(files: Mapping[str, bytes]) -> str:
    """What stands for a package's Python files in results."""
    found = hashlib.sha256()
    for name in sorted(files):
        if name.endswith(".py"):
            found.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return found.hexdigest()[:16]


def digest_on_disk(folder: Path) -> str | None:
    """The same of a package's folder, None where there is none."""
    if not folder.is_dir():
        return None
    return digest({path.name: path.read_bytes() for path in folder.glob("*.py")})


def code_digest(place: Path) -> str:
    """What stands for a Python file, or for those of a folder and below it: of vgen's own runtime, for one."""
    found = hashlib.sha256()
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        found.update(f"{path.relative_to(place.parent).as_posix()}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]
