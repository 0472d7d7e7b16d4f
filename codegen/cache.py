"""What was built before, by what it was built from: vgen's own code, the files of Transformers that were read, the options.

    <folder>/<code>/inputs/<model and options>    the files that earlier builds read
    <folder>/<code>/results/<key>                 what was built; the key covers the contents of those files

It may be deleted at any time, also while a build runs. Files appear whole or not at all, so builds can share it. What can't be
read, decoded or written is as good as absent.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from .. import __version__
from .codec import UndecodableError, decode, encode
from .package import NO_REGION, Failure, Options, Package
from .source import Source

OFF = "off"
VARIANTS = 4
"""How many sets of files are remembered of one model: releases of Transformers differ in which they have."""
KEPT = 3
"""How many versions of vgen's code keep their results."""
MANY = 5000
"""How many results one version keeps: the whole catalogue of several releases, some 50 MB."""

Read = Mapping[str, str | None]
"""Path from the source's root → digest of the file, None where there is no such file."""

PACKAGE_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The results for one source. Each file of it is read once at most: for sources that don't change meanwhile."""

    folder: Path
    source: Source
    _digests: dict[str, str | None] = field(default_factory=dict, repr=False)

    def key(self, model: str, options: Options) -> str | None:
        """The key of what was built from the files as they are now, None where nothing was."""
        for paths in self._inputs(model, options):
            key = _key(model, options, self.source.version, {path: self._digest(path) for path in paths})
            if self._result(key).is_file():
                return key
        return None

    def load(self, key: str, runtime_files: Mapping[str, str]) -> Package | Failure | None:
        """What `key` stands for, None where that has gone or is damaged."""
        try:
            return decode(self._result(key).read_bytes(), runtime_files)
        except (OSError, UndecodableError):
            return None

    def keep(self, model: str, options: Options, read: Read, result: Package | Failure) -> None:
        """Remember what was built from the files in `read`. Failures that another try may not meet aren't kept."""
        if isinstance(result, Failure) and result.code != NO_REGION:
            return
        with suppress(OSError):
            _write(self._result(_key(model, options, self.source.version, read)), encode(result))
            paths = sorted(read)
            known = [each for each in self._inputs(model, options) if each != paths]
            _write(self._input(model, options), json.dumps([paths, *known][:VARIANTS]).encode())

    def trim(self) -> None:
        """Remove the oldest results where there are very many."""
        with suppress(OSError):
            found = [(entry.stat().st_mtime, entry.path) for entry in os.scandir(self.folder / "results")]
            for _, path in sorted(found, reverse=True)[MANY:]:
                Path(path).unlink(missing_ok=True)

    def _digest(self, path: str) -> str | None:
        if path not in self._digests:
            self._digests[path] = _digest_of(self.source.root / path)
        return self._digests[path]

    def _inputs(self, model: str, options: Options) -> list[list[str]]:
        try:
            found = json.loads(self._input(model, options).read_bytes())
        except (OSError, ValueError):
            return []
        sound = isinstance(found, list) and all(
            isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in found
        )
        return found if sound else []

    def _input(self, model: str, options: Options) -> Path:
        return self.folder / "inputs" / _hash(_chosen(model, options))

    def _result(self, key: str) -> Path:
        return self.folder / "results" / key


def cache_of(source: Source) -> Cache | None:
    """The user's cache, None where it is switched off: `VGEN_CACHE=off`."""
    if os.environ.get("VGEN_CACHE") == OFF:
        return None
    home = os.environ.get("XDG_CACHE_HOME", "")
    # As the specification has it, a relative path counts for nothing.
    base = Path(home) if home and Path(home).is_absolute() else Path("~/.cache").expanduser()
    folder = base / "vgen" / code_digest()[:16]
    with suppress(OSError):
        if not folder.is_dir():
            for part in ("inputs", "results"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            _forget_old(folder.parent)
        os.utime(folder)
    return Cache(folder=folder, source=source)


@cache
def code_digest() -> str:
    """One digest over all that a result depends on but for its source and options."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jinja2", "libcst", "ruff")]
    # `ast` is Python's, and so is the text that it writes.
    parts = [__version__, ".".join(map(str, sys.version_info[:3])), *versions]
    files = [*(PACKAGE_ROOT / "codegen").rglob("*.py"), *(PACKAGE_ROOT / "templates").glob("*.j2")]
    for path in sorted([*files, PACKAGE_ROOT / "runtime" / "digest.py"]):
        parts += [path.relative_to(PACKAGE_ROOT).as_posix(), str(_digest_of(path))]
    return _hash(parts)


def _forget_old(folder: Path) -> None:
    """Remove what was built by code that has not been used for the longest time."""
    versions = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime)
    for path in versions[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def _key(model: str, options: Options, version: str, read: Read) -> str:
    return _hash([*_chosen(model, options), version, *(f"{path} {read[path]}" for path in sorted(read))])


def _chosen(model: str, options: Options) -> list[str]:
    decided = [f"{key} = {value}" for key, value in sorted(options.decided(model).rows().items())]
    return [model, options.granularity.value, str(options.standalone), *decided]


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _digest_of(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing, whatever else writes there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
