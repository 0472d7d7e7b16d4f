# SPDX-License-Identifier: Apache-2.0
"""Where artifacts lie, and which of them may be loaded.

An artifact is a pickle: loading one runs code. So it is looked at before it is unpickled: it must be whole, and it must
be the user's own or listed in a manifest that the user named.

A file is: the magic, the lengths of header and payload (8 bytes each, big-endian), the sha256 of header and payload, the
header (JSON), the payload.
"""

import contextlib
import hashlib
import json
import os
import stat
import struct
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ArtifactError
from .signatures import require_signature

MAGIC = b"VGENART1"
SUFFIX = ".vgenart"
_PREFIX = struct.Struct(">8sQQ32s")
# Files of writers that were killed begin with this; `prune` removes them.
_PARTIAL = ".partial-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A whole artifact that may be loaded.

    Attributes:
        path: The file.
        header: `key`, `tag`, `fields` (what the key is the digest of) and `refs` (modules that the code refers to).
        payload: What PyTorch saved. A pickle.
    """

    path: Path
    header: Mapping[str, Any]
    payload: bytes


def stores() -> list[Path]:
    """The folders that are searched: those that `VGEN_STORE` names, then `~/.cache/vgen/artifacts`."""
    named = [Path(each) for each in os.environ.get("VGEN_STORE", "").split(os.pathsep) if each]
    return [*named, default_store()]


def default_store() -> Path:
    """`artifacts` in `vgen` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vgen" / "artifacts"


def file_name(tag: str, key: str) -> str:
    """The name of the artifact of a region with a key."""
    return f"{tag}-{key[:32]}{SUFFIX}"


def pack(header: Mapping[str, Any], payload: bytes) -> bytes:
    """The bytes of an artifact's file."""
    text = json.dumps(header, sort_keys=True, allow_nan=False).encode()
    digest = hashlib.sha256(text + payload).digest()
    return _PREFIX.pack(MAGIC, len(text), len(payload), digest) + text + payload


def unpack(path: Path, data: bytes) -> Artifact:
    """Read an artifact's file, without unpickling anything.

    Raises:
        ArtifactError: It isn't an artifact, or not a whole one.
    """
    if not data:
        raise ArtifactError(f"{path} is empty")
    if len(data) < _PREFIX.size:
        raise ArtifactError(f"{path} is truncated, or no artifact")
    magic, header_length, payload_length, digest = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise ArtifactError(f"{path} is no artifact of this version")
    if len(data) != _PREFIX.size + header_length + payload_length:
        raise ArtifactError(f"{path} is truncated: it has {len(data)} bytes, and not as many as it says")
    body = memoryview(data)[_PREFIX.size :]
    if hashlib.sha256(body).digest() != digest:
        raise ArtifactError(f"{path} is corrupted: its digest isn't the one that it was written with")
    header = json.loads(bytes(body[:header_length]))
    return Artifact(path=path, header=header, payload=bytes(body[header_length:]))


def read(path: Path, *, trusted: bool = True) -> Artifact:
    """Read an artifact that may be loaded.

    Args:
        path: The file.
        trusted: Whether it must be one that may be loaded; False only to show what is in its header.

    Raises:
        ArtifactError: It isn't whole, or it isn't the user's own and no manifest lists it.
        FileNotFoundError: It isn't there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ArtifactError(f"{path} can't be read: {error.strerror or error}") from None
    with os.fdopen(descriptor, "rb") as file:
        # Of the open file and the folder, so that what is checked is what is read.
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path} is no regular file")
        data = file.read()
    if trusted:
        reason = _foreign(path, status) or _foreign(path.parent, path.parent.stat())
        if reason is not None and hashlib.sha256(data).hexdigest() not in _listed():
            raise ArtifactError(
                f"{path} isn't loaded, because {reason}. Let VGEN_ARTIFACTS_MANIFEST name a manifest that lists it, "
                f"or change its owner or permissions"
            )
    return unpack(path, data)


def write(folder: Path, header: Mapping[str, Any], payload: bytes) -> Path:
    """Write an artifact: all of it, or nothing.

    Raises:
        OSError: The folder can't be written to, or is full. Nothing is left there then.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / file_name(header["tag"], header["key"])
    descriptor, partial = tempfile.mkstemp(prefix=_PARTIAL, dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pack(header, payload))
            file.flush()
            os.fsync(file.fileno())
        Path(partial).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(partial).unlink()
        raise
    return path


def paths(folder: Path, tag: str | None = None) -> list[Path]:
    """The artifacts in a folder, or those of one region, by name."""
    try:
        return sorted(each for each in folder.glob(f"{tag or ''}*{SUFFIX}") if tag is None or _is_of(each, tag))
    except OSError:
        return []


def headers(folder: Path, tag: str) -> Iterator[dict[str, Any]]:
    """The fields of the artifacts of a region, those that may not be loaded included. Broken ones are left out."""
    for path in paths(folder, tag):
        with contextlib.suppress(ArtifactError, OSError):
            yield read(path, trusted=False).header["fields"]


def partials(folder: Path) -> Iterator[Path]:
    """What killed writers left."""
    yield from folder.glob(f"{_PARTIAL}*")


def manifest(folder: Path) -> str:
    """A manifest (TOML) of the artifacts in a folder: their names and sha256."""
    lines = ["[artifacts]"]
    lines += [f'"{each.name}" = "{hashlib.sha256(each.read_bytes()).hexdigest()}"' for each in paths(folder)]
    return "\n".join(lines) + "\n"


def _is_of(path: Path, tag: str) -> bool:
    return path.name.removesuffix(SUFFIX).rpartition("-")[0] == tag


def _foreign(path: Path, status: os.stat_result) -> str | None:
    if not hasattr(os, "getuid"):
        return f"on this system it can't be seen who may write to {path}"
    if status.st_uid != os.getuid():
        return f"{path} belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to {path}"
    return None


def _listed() -> frozenset[str]:
    """The digests in the manifest that the user named.

    Raises:
        ArtifactError: It can't be read, or anyone might have written it: it is neither the user's own nor signed.
    """
    name = os.environ.get("VGEN_ARTIFACTS_MANIFEST")
    if not name:
        return frozenset()
    path, signers = Path(name), os.environ.get("VGEN_ARTIFACTS_SIGNERS")
    try:
        content = path.read_bytes()
        table = tomllib.loads(content.decode("utf-8")).get("artifacts", {})
        status = path.stat()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ArtifactError(
            f"the manifest {name}, which VGEN_ARTIFACTS_MANIFEST names, can't be read: {error}"
        ) from None
    if signers:
        require_signature(path, content, Path(signers))
    elif status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        reason = _foreign(path, status)
        if reason is not None:
            raise ArtifactError(
                f"the manifest {name} isn't trusted, because {reason}. Change that, or have it signed and let "
                f"VGEN_ARTIFACTS_SIGNERS name the file of allowed signers"
            )
    if not isinstance(table, dict):
        raise ArtifactError(f"the manifest {name} must have a table [artifacts] of names and digests")
    return frozenset(each for each in table.values() if isinstance(each, str))
