"""`vgen.lock`: what a generated package was made from. Written and read here, one to a package folder.

It is TOML, and the only place where versions stand. A package that is moved or vendored takes its lock along.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .errors import VgenError
from .facts import Span
from .local import COPIES
from .plan import Granularity

LOCK_NAME = "vgen.lock"
FORMAT = 1
"""Goes up when an older vgen couldn't read the file any more."""

OWN = Path(__file__).resolve().parent.parent / "generated"
"""vgen's own folder of packages: where they go when the user names no other."""

_COMMENT = "# Written by vgen, do not edit: `vgen check` compares this package with what a build would write.\n"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedFrom:
    """Where the copies in a package come from: the modeling file among them, relative to their folder, and the path of what the
    user named, from the package's folder; None where it lies outside of the project."""

    file: str
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What one package was generated from, and the digests of its files. Digests are SHA-256, in hex.

    `upstream` maps a file of Transformers to its classes that were used, and each class to the digest of its source;
    `files` maps the same files to the digest of the whole file. `outputs` leaves the lock itself out.
    """

    model: str
    vgen: str
    transformers: str
    granularity: str
    standalone: bool
    templates: str
    upstream: Mapping[str, Mapping[str, str]]
    outputs: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    decisions: Mapping[str, str] = field(default_factory=dict)
    """What the user's project said about the model, so that a check builds the same."""
    copied: CopiedFrom | None = None

    @property
    def copies(self) -> Mapping[str, str]:
        """The copies of upstream's files and their digests, by path relative to their folder."""
        if self.copied is None:
            return {}
        prefix = f"{COPIES}/"
        return {path.removeprefix(prefix): digest for path, digest in self.outputs.items() if path.startswith(prefix)}


def digest(content: str | bytes) -> str:
    """SHA-256 in hex; text counts as UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def render_lock(lock: Lock) -> str:
    """The text of the lock: sorted, so that equal locks have equal bytes."""
    head = [
        f"lock = {FORMAT}",
        f"model = {_string(lock.model)}",
        f"vgen = {_string(lock.vgen)}",
        f"transformers = {_string(lock.transformers)}",
        f"granularity = {_string(lock.granularity)}",
        f"standalone = {'true' if lock.standalone else 'false'}",
        f"templates = {_string(lock.templates)}",
    ]
    tables = [_table("decisions", lock.decisions)] if lock.decisions else []
    copied = {} if lock.copied is None else {"file": lock.copied.file}
    if lock.copied is not None and lock.copied.path is not None:
        copied["path"] = lock.copied.path
    tables += [_table("copied", copied) if copied else "", _table("outputs", lock.outputs)]
    tables += [_table("files", lock.files) if lock.files else ""]
    tables += [_table(f"upstream.{_string(file)}", lock.upstream[file]) for file in sorted(lock.upstream)]
    return _COMMENT + "\n".join(head) + "\n" + "".join(tables)


def render_runtime_lock(vgen: str, outputs: Mapping[str, str]) -> str:
    """The lock of a standalone copy of the runtime: it has no model, only files."""
    return f"{_COMMENT}lock = {FORMAT}\nvgen = {_string(vgen)}\n{_table('outputs', outputs)}"


def read_lock(path: Path) -> Lock:
    """Read a package's lock.

    Raises:
        VgenError: `broken-lock`, when the file can't be read or isn't what vgen writes.
    """
    return parse_lock(_read(path), path)


def parse_lock(text: str, path: Path) -> Lock:
    """Like `read_lock`, for text at hand; `path` is named in errors and never opened."""
    reader = _Reader(text, path)
    granularity = reader.string("granularity")
    if granularity not in tuple(Granularity):
        raise reader.broken(f"granularity is {granularity!r}")
    return Lock(
        model=reader.string("model"),
        vgen=reader.string("vgen"),
        transformers=reader.string("transformers"),
        granularity=granularity,
        standalone=reader.flag("standalone"),
        templates=reader.string("templates"),
        upstream=reader.tables("upstream"),
        outputs=reader.outputs(),
        files=reader.strings("files") if "files" in reader.data else {},
        decisions=reader.strings("decisions") if "decisions" in reader.data else {},
        copied=reader.copied(),
    )


def read_outputs(path: Path) -> Mapping[str, str]:
    """The files that a lock lists, with their digests: all that publishing asks of one.

    Raises:
        VgenError: `broken-lock`, as for `read_lock`.
    """
    return _Reader(_read(path), path).outputs()


def changes(old: Lock, new: Lock) -> tuple[str, ...]:
    """What `new` was made from that `old` wasn't, a line each: classes of upstream, then versions and templates."""
    lines = []
    for name in sorted({*old.copies, *new.copies}):
        if old.copies.get(name) != new.copies.get(name):
            state = (
                "is copied now"
                if name not in old.copies
                else "isn't copied any more"
                if name not in new.copies
                else "changed"
            )
            lines.append(f"{name} {state}")
    for file in sorted({*old.upstream, *new.upstream}):
        before, after = old.upstream.get(file, {}), new.upstream.get(file, {})
        for name in sorted({*before, *after}):
            if name not in after:
                lines.append(f"{name} is not used any more ({file})")
            elif name not in before:
                lines.append(f"{name} is used now ({file})")
            elif before[name] != after[name]:
                lines.append(f"{name} changed upstream ({file})")
    if old.transformers != new.transformers:
        lines.append(f"Transformers {old.transformers} → {new.transformers}")
    if old.vgen != new.vgen:
        lines.append(f"vgen {old.vgen} → {new.vgen}")
    if old.templates != new.templates:
        lines.append("vgen's templates changed")
    return tuple(lines)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _broken(path, f"it isn't UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise _broken(path, f"it can't be read ({error.strerror})") from error


def _broken(path: Path, reason: str, *, line: int | None = None) -> VgenError:
    place = "" if line else f"{path}: "
    return VgenError(
        "broken-lock",
        f"{place}this lock file is broken: {reason}.",
        span=Span(file=str(path), line=line) if line else None,
        hint=f"Restore it from version control, or write the package again: `{_command(path.parent)}`.",
    )


def _command(package: Path) -> str:
    """What writes a package again whose lock says nothing about it."""
    what = "PATH" if (package / COPIES).is_dir() else package.name
    folder = "" if package.parent.resolve() == OWN else f" --out {package.parent.as_posix()}"
    return f"vgen build {what}{folder} --force"


class _Reader:
    """A parsed lock, and typed access to its keys; every error names the file."""

    def __init__(self, text: str, path: Path) -> None:
        self.path = path
        try:
            self.data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            reason, _, place = str(error).partition(" (at line ")
            line = int(found[0]) if (found := re.match(r"\d+", place)) else None
            if "\n<<<<<<< " in f"\n{text}":
                reason = "a merge conflict is left in it"
            raise _broken(path, reason[:1].lower() + reason[1:], line=line) from error
        version = self.data.get("lock")
        if type(version) is int and version > FORMAT:
            raise VgenError(
                "newer-lock",
                f"{path} was written by a newer vgen (lock format {version}; this one reads up to {FORMAT}).",
                hint="Update vgen.",
            )
        if version != FORMAT:
            raise self.broken(f"it has no `lock = {FORMAT}`")

    def broken(self, reason: str) -> VgenError:
        return _broken(self.path, reason)

    def string(self, key: str) -> str:
        value = self.data.get(key)
        if not isinstance(value, str):
            raise self.broken(f"`{key}` is missing or isn't a string")
        return value

    def flag(self, key: str) -> bool:
        value = self.data.get(key)
        if not isinstance(value, bool):
            raise self.broken(f"`{key}` is missing or isn't true or false")
        return value

    def strings(self, key: str) -> dict[str, str]:
        return self._strings(key, self.data.get(key))

    def tables(self, key: str) -> dict[str, dict[str, str]]:
        value = self.data.get(key, {})
        if not isinstance(value, dict):
            raise self.broken(f"`{key}` isn't a table")
        return {name: self._strings(f"{key}.{name}", table) for name, table in value.items()}

    def copied(self) -> CopiedFrom | None:
        if "copied" not in self.data:
            return None
        table = self.strings("copied")
        if not is_inside(table.get("file", "")):
            raise self.broken("`copied` doesn't name a file among the copies")
        return CopiedFrom(file=table["file"], path=table.get("path"))

    def outputs(self) -> dict[str, str]:
        outputs = self.strings("outputs")
        for name in outputs:
            # A stale output is deleted: a name that leads out of the folder must not get that far.
            if not is_inside(name):
                raise self.broken(f"`outputs` names {name!r}, which isn't a path inside the package")
        return outputs

    def _strings(self, key: str, value: object) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise self.broken(f"`{key}` is missing or isn't a table of strings")
        return dict(value)


def is_inside(name: str) -> bool:
    """Whether a relative path with forward slashes stays inside the folder it is relative to."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not {"\\", ":"} & set(name)


def _table(header: str, rows: Mapping[str, str]) -> str:
    lines = "".join(f"{_key(key)} = {_string(rows[key])}\n" for key in sorted(rows))
    return f"\n[{header}]\n{lines}"


def _key(text: str) -> str:
    return text if _BARE_KEY.fullmatch(text) else _string(text)


def _string(text: str) -> str:
    """A TOML basic string. JSON's escapes are TOML's, but for one character that only TOML has escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
