"""The file in which results are kept: one for each version of Transformers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from ..codegen import documents
from ..codegen.errors import VgenError
from .results import Proof, Record, Settings, decode_record, encode, without_seconds


def path_of(folder: Path, version: str) -> Path:
    return folder / f"{version}.json"


def read(path: Path) -> Record:
    """An empty record where there is no file.

    Raises:
        VgenError: `broken-record`.
    """
    try:
        return decode_record(path.read_bytes())
    except FileNotFoundError:
        return Record()
    except msgspec.DecodeError as error:
        raise VgenError(
            "broken-record",
            f"{path} can't be read: {error}.",
            hint="Restore it from version control, or delete it and run `vgen verify` with --record again.",
        ) from error


def update(folder: Path, settings: Settings, proofs: Iterable[Proof]) -> Path:
    """Write what was found into the file of this Transformers; what it says of other packages stays.

    Raises:
        VgenError: `broken-record`.
    """
    path = path_of(folder, settings.transformers)
    found = {proof.model: without_seconds(proof) for proof in proofs}
    record = read(path).updated(settings, found)
    documents.write(folder, {path.name: encode(record).decode()})
    return path
