"""How a folder on disk differs from what a build would write: `check`, `diff` and `publish` all ask here."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from .errors import VgenError
from .lock import LOCK_NAME, read_outputs


class DriftKind(StrEnum):
    CHANGED = "CHANGED"
    MISSING = "MISSING"
    EXTRA = "EXTRA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One file that differs. `path` is relative to the package's folder; the absent side's text is None."""

    kind: DriftKind
    path: str
    on_disk: str | None
    built: str | None


def compare(folder: Path, files: Mapping[str, str]) -> tuple[Drift, ...]:
    """Every file of `folder` that isn't as in `files`, by path.

    EXTRA is what the build doesn't write: Python files, and other files that the folder's lock lists.
    """
    drifts = []
    for path in sorted(files):
        content = _content(folder / path)
        if content is None:
            drifts.append(Drift(kind=DriftKind.MISSING, path=path, on_disk=None, built=files[path]))
        elif content != files[path].encode():
            drifts.append(Drift(kind=DriftKind.CHANGED, path=path, on_disk=_text(content), built=files[path]))
    for path in sorted((python_files(folder) | _listed(folder)) - set(files)):
        content = _content(folder / path)
        if content is not None:
            drifts.append(Drift(kind=DriftKind.EXTRA, path=path, on_disk=_text(content), built=None))
    return tuple(sorted(drifts, key=lambda drift: drift.path))


def unified_diff(drift: Drift, *, label: str) -> Iterator[str]:
    """Lines, without their ends, that lead from what is on disk to what a build would write.

    `label` stands before the path in the header, as in `a/<label>/<path>`.
    """
    before, after = _lines(drift.on_disk), _lines(drift.built)
    old = "/dev/null" if drift.on_disk is None else f"a/{label}/{drift.path}"
    new = "/dev/null" if drift.built is None else f"b/{label}/{drift.path}"
    if not before and not after:
        yield from (f"--- {old}", f"+++ {new}")
    for line in difflib.unified_diff(before, after, old, new):
        yield _visible(line)


def python_files(folder: Path) -> set[str]:
    """Every Python file at or below `folder`, by relative path, caches left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def _lines(text: str | None) -> list[str]:
    """Split at newlines alone: `str.splitlines` would also split at form feeds and the like."""
    return list(io.StringIO(text or "", newline="\n"))


def _visible(line: str) -> str:
    """A diff line without its end; what would look the same on a terminal is spelled out."""
    if not line.endswith("\n"):
        return f"{line}\n\\ No newline at end of file"
    return f"{line[:-2]}^M" if line.endswith("\r\n") else line[:-1]


def _listed(folder: Path) -> set[str]:
    try:
        return set(read_outputs(folder / LOCK_NAME))
    except VgenError:
        return set()  # a broken lock is CHANGED or MISSING itself


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _text(content: bytes) -> str:
    return content.decode(errors="replace")
