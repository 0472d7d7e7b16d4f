"""Files that vgen writes for people to read: compared with a folder, and written where they differ."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path


def stale(folder: Path, documents: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the documents that are missing from `folder` or say something else there."""
    return tuple(name for name in sorted(documents) if _read(folder / name) != documents[name].encode())


def write(folder: Path, documents: Mapping[str, str]) -> tuple[str, ...]:
    """Write what is stale, each file in one step, and return the names.

    Raises:
        OSError: A file can't be written; those before it are.
    """
    names = stale(folder, documents)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as file:
            staged = Path(file.name)
        try:
            staged.write_bytes(documents[name].encode())
            staged.chmod(0o644 if not (folder / name).exists() else (folder / name).stat().st_mode & 0o777)
            staged.replace(folder / name)
        finally:
            staged.unlink(missing_ok=True)
    return names


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
