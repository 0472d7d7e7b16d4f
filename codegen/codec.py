"""Packages and failures as bytes and back, for the cache and between processes. Decoding checks every type and runs no code."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import msgspec

from .facts import ModelFacts
from .package import Failure, Package
from .plan import Plan


class UndecodableError(Exception):
    """The bytes aren't what `encode` writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Built:
    """A package without its copy of the runtime, which is the same for all."""

    facts: ModelFacts
    plan: Plan
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """One of the two."""

    built: _Built | None = None
    failure: Failure | None = None


def encode(result: Package | Failure) -> bytes:
    """Bytes that `decode` makes the same object of, but for the files of a standalone runtime."""
    match result:
        case Failure():
            record = _Record(failure=result)
        case Package():
            record = _Record(built=_Built(facts=result.facts, plan=result.plan, files=result.files))
    return zlib.compress(msgspec.msgpack.encode(record), 1)


def decode(data: bytes, runtime_files: Mapping[str, str]) -> Package | Failure:
    """What was encoded. `runtime_files` are those of a package that stands alone, else empty.

    Raises:
        UndecodableError: the bytes are damaged, or another version's.
    """
    try:
        record = _decoder().decode(zlib.decompress(data))
    except (zlib.error, msgspec.DecodeError) as error:
        raise UndecodableError(str(error)) from error
    if record.failure is not None:
        return record.failure
    if record.built is None:
        raise UndecodableError("the record is empty")
    built = record.built
    return Package(
        model=built.plan.model, facts=built.facts, plan=built.plan, files=built.files, runtime_files=runtime_files
    )


@cache
def _decoder() -> msgspec.msgpack.Decoder[_Record]:
    return msgspec.msgpack.Decoder(_Record)
