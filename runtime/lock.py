# SPDX-License-Identifier: Apache-2.0
"""Reads `vgen.lock`: what a generated package was built from. Standard library only."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import LockError

LOCK_NAME = "vgen.lock"
# vgen's own packages, where this runtime is the installed one: `vgen build` writes there by itself.
_OWN = Path(__file__).resolve().parent.parent / "generated"
COPIES = "upstream"
"""The folder, in a package of a model that isn't Transformers', of the copies of that model's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The part of `vgen.lock` that is checked when a generated package is imported.

    Attributes:
        model: What `vgen build` takes to write the package again.
        transformers: The version of Transformers that it was built from.
        files: Path of an upstream file, relative to the folder that holds the transformers package, to the sha256 of
            its bytes.
        upstream: The same paths, to the sha256 of each definition that the package relies on, by name.
        copies: Path of a copy of a file of the model, relative to the folder of copies, to its sha256; empty for the models of
            Transformers.
        source: Where the copies come from, as a path from the package's folder; None where the lock doesn't say.
    """

    model: str
    transformers: str
    files: Mapping[str, str]
    upstream: Mapping[str, Mapping[str, str]]
    copies: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None

    def command(self, package: Path) -> str:
        """What writes the package in the folder `package` again."""
        if not self.copies:
            return f"vgen build {self.model}{_out(package)}"
        place = os.path.relpath(package / self.source) if self.source is not None else "PATH"
        return f"vgen build {place} --out {os.path.relpath(package.parent)}"


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
    copied = data.get("copied")
    # A model that isn't Transformers' may use none of its models.
    upstream = data.get("upstream", {} if isinstance(copied, dict) else None)
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
    outputs = data.get("outputs", {})
    copies: dict[str, str] = {}
    if isinstance(copied, dict):
        if not _is_digests(outputs):
            raise _broken(path, "[outputs] must map paths to digests")
        copies = {name.removeprefix(f"{COPIES}/"): outputs[name] for name in outputs if name.startswith(f"{COPIES}/")}
    source = copied.get("path") if isinstance(copied, dict) else None
    return Lock(
        model=model,
        transformers=transformers,
        files=files,
        upstream=upstream,
        copies=copies,
        source=source if isinstance(source, str) else None,
    )


def _out(package: Path) -> str:
    """What a build has to be told so that it writes where the package is."""
    return "" if package.parent.resolve() == _OWN else f" --out {os.path.relpath(package.parent)}"


def _is_digests(table: object) -> bool:
    return isinstance(table, dict) and all(isinstance(each, str) for each in table.values())


def _broken(path: Path, reason: str) -> LockError:
    package = path.parent
    what = "PATH" if (package / COPIES).is_dir() else package.name
    return LockError(
        f"{path} says what this package was built from, and can't be read: {reason}. "
        f"Restore it from version control, or run `vgen build {what}{_out(package)} --force` to write the package again."
    )
