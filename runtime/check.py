# SPDX-License-Identifier: Apache-2.0
"""Whether the installed Transformers is the one that a generated package was built from, and its copies what was read.

Generated packages call this first, so it reads files and imports neither torch nor Transformers.
"""

import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from .digest import bytes_digest, definitions
from .errors import UpstreamChangedError
from .lock import COPIES, LOCK_NAME, Lock, read_lock


def require_upstream(package_name: str, package_file: str) -> None:
    """Raise unless the upstream definitions that a generated package uses are the ones it was built from.

    Args:
        package_name: The package's `__name__`, for messages.
        package_file: The package's `__file__`; `vgen.lock` lies beside it.

    Raises:
        LockError: `vgen.lock` is missing or broken.
        UpstreamChangedError: Transformers isn't installed, or definitions in it changed, were moved or were removed; or a
            copy of a model's own files isn't as the build read it.
    """
    folder = Path(package_file).parent
    lock = read_lock(folder / LOCK_NAME)
    _require_copies(package_name, folder, lock)
    root = _site()
    if root is None:
        whose = "" if lock.copies else "Transformers' "
        raise UpstreamChangedError(
            f"{package_name} holds subclasses of {whose}{lock.model} classes, but the package transformers "
            f"isn't installed: `pip install transformers=={lock.transformers}` installs the version it was built from."
        )
    changed: list[str] = []
    for name, expected in sorted(lock.upstream.items()):
        path = root / name
        data = _read(path)
        if data is None:
            changed.append(f"{', '.join(sorted(expected))} (the file {path} is gone)")
        elif lock.files.get(name) != bytes_digest(data):
            changed.extend(_changes(path, data, expected))
    if changed:
        raise UpstreamChangedError(
            f"{package_name} was built from Transformers {lock.transformers}, and definitions that it relies on are "
            f"different in the installed one: {'; '.join(changed)}. Run `{lock.command(folder)}` to build it again "
            f"and review the diff, or `pip install transformers=={lock.transformers}`."
        )


def _require_copies(package_name: str, folder: Path, lock: Lock) -> None:
    changed = [
        f"{path} ({'is gone' if data is None else 'is different'})"
        for path, expected in sorted((folder / COPIES / name, each) for name, each in lock.copies.items())
        if (data := _read(path)) is None or bytes_digest(data) != expected
    ]
    if changed:
        raise UpstreamChangedError(
            f"{package_name} runs copies of the files that were read when it was built, and these aren't what was read: "
            f"{', '.join(changed)}. Restore them from version control, or run `{lock.command(folder)} --force` and review "
            f"the diff."
        )


def _changes(path: Path, data: bytes, expected: Mapping[str, str]) -> list[str]:
    try:
        found = definitions(data.decode("utf-8"), expected)
    except (SyntaxError, UnicodeDecodeError) as error:
        return [f"{', '.join(sorted(expected))} ({path} can't be parsed: {error})"]
    changes = []
    for name, digest in sorted(expected.items()):
        definition = found.get(name)
        if definition is None:
            changes.append(f"{name} (gone from {path})")
        elif definition.digest != digest:
            changes.append(f"{name} ({path}:{definition.line})")
    return changes


@lru_cache(maxsize=1)
def _site() -> Path | None:
    """The folder that holds the transformers package."""
    spec = importlib.util.find_spec("transformers")
    locations = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(locations))).parent if locations else None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
