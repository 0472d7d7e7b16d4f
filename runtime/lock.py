# SPDX-License-Identifier: Apache-2.0
"""Reads `vgen.lock`: what a generated package was built from. Standard library only."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import LockError

LOCK_NAME = "vgen.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The part of `vgen.lock` that is checked when a generated package is imported.

    Attributes:
        model: What `vgen build` takes to write the package again.
        transformers: The version of Transformers that it was built from.
        files: Path of an upstream file, relative to the folder that holds the transformers package, to the sha256 of
            its bytes.
        upstream: The same paths, to the sha256 of each definition that the package relies on, by name.
    """

    model: str
    transformers: str
    files: Mapping[str, str]
    upstream: Mapping[str, Mapping[str, str]]


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        LockError: It is missing, isn't TOML, or doesn't have the tables that are needed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _broken(path, "it isn't there") from None
    except OSError as error:
        raise _broken(path, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise _broken(path, "it isn't UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise _broken(path, f"it isn't TOML: {error}") from None
    upstream = data.get("upstream")
    if not isinstance(upstream, dict):
        raise _broken(path, "it has no [upstream] table")
    for file, table in upstream.items():
        if not _is_digests(table):
            raise _broken(path, f'[upstream."{file}"] must map names to digests')
    files = data.get("files", {})
    if not _is_digests(files):
        raise _broken(path, "[files] must map paths to digests")
    model, transformers = data.get("model"), data.get("transformers")
    if not (isinstance(model, str) and isinstance(transformers, str)):
        raise _broken(path, "it doesn't name the model and the version of transformers")
    return Lock(model=model, transformers=transformers, files=files, upstream=upstream)


def _is_digests(table: object) -> bool:
    return isinstance(table, dict) and all(isinstance(each, str) for each in table.values())


def _broken(path: Path, reason: str) -> LockError:
    return LockError(
        f"{path} says what this package was built from, and can't be read: {reason}. "
        f"Restore it from version control, or run `vgen build {path.parent.name}` to write the package again."
    )
