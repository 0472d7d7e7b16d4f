"""Text → disk, all or nothing: either every file of every package is in place, or nothing has changed.

Only files that vgen wrote, and that nobody edited since, are overwritten or removed; the package's lock says which.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .compare import python_files
from .errors import VgenError
from .lock import LOCK_NAME, digest, is_inside, read_outputs

_STAGED = ".vgen-new"
_BACKUP = ".vgen-old"
_PATIENCE = 60.0
"""Seconds to wait for another build that writes to the same folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What became of one folder. Paths are relative to it, with forward slashes.

    `kept` are Python files that vgen neither wrote nor writes: they stay until `--force`.
    """

    folder: Path
    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Change:
    """One file to write, or to remove where `text` is None."""

    target: Path
    text: bytes | None


def publish(outputs: Sequence[tuple[Path, Mapping[str, str]]], *, force: bool = False) -> tuple[Published, ...]:
    """Write each folder's files, remove its stale ones; on any failure put everything back.

    Args:
        outputs: folders and the text of their files, by path relative to the folder; the lock is among them.
        force: overwrite what was edited or isn't vgen's; where there is a lock, remove other Python files too.

    Raises:
        VgenError: `foreign-file`, `broken-lock`, `cannot-write`, `busy`; nothing on disk has changed then.
    """
    folders = [folder for folder, _ in outputs]
    with _exclusive(folders):
        reports = tuple(_survey(folder, files, force=force) for folder, files in outputs)
        changes = [
            change
            for (folder, files), report in zip(outputs, reports, strict=True)
            for change in _changes(folder, files, report)
        ]
        _commit(folders, changes)
    return reports


def _survey(folder: Path, files: Mapping[str, str], *, force: bool) -> Published:
    """What a publish would do to one folder; raises where it may not."""
    owned = _owned(folder, force=force)
    written: list[str] = []
    unchanged: list[str] = []
    removed: list[str] = []
    edited: list[str] = []
    foreign: list[str] = []
    for name in sorted(files):
        if not is_inside(name):
            raise ValueError(f"{name!r} isn't a path inside a package")
        current = _read(folder / name)
        if current is None:
            written.append(name)
        elif current == files[name].encode():
            unchanged.append(name)
        else:
            written.append(name)
            if not force and name != LOCK_NAME and owned.get(name) != digest(current):
                (edited if name in owned else foreign).append(name)
    for name in sorted(set(owned) - set(files)):
        current = _read(folder / name)
        if current is not None:
            removed.append(name)
            if not force and owned[name] != digest(current):
                edited.append(name)
    extra = sorted(python_files(folder) - set(files) - set(owned))
    # A folder without a lock may be somebody's own package: --force takes over its names there, and no more.
    clear = force and (folder / LOCK_NAME).exists()
    if edited or foreign:
        _refuse(folder, edited, foreign)
    return Published(
        folder=folder,
        written=tuple(written),
        unchanged=tuple(unchanged),
        removed=tuple(sorted([*removed, *extra] if clear else removed)),
        kept=() if clear else tuple(extra),
    )


def _owned(folder: Path, *, force: bool) -> Mapping[str, str]:
    """The files that vgen wrote here, with their digests then. `force` overlooks a lock that can't be read."""
    lock = folder / LOCK_NAME
    if not lock.exists():
        return {}
    try:
        return read_outputs(lock)
    except VgenError:
        if force and lock.is_file():
            return {}
        raise


def _refuse(folder: Path, edited: Sequence[str], foreign: Sequence[str]) -> None:
    """Raise the error that names what stands in the way."""
    reasons = []
    if edited:
        reasons.append(f"{', '.join(edited)} {_was(edited)} edited since vgen wrote {_it(edited)}")
    if foreign:
        reasons.append(f"{', '.join(foreign)} {_was(foreign)} not written by vgen")
    raise VgenError(
        "foreign-file",
        f"In {folder}, {' and '.join(reasons)}; nothing was changed.",
        hint="Move your work elsewhere, or pass --force to overwrite it.",
    )


def _was(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


def _it(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _read(path: Path) -> bytes | None:
    """The file's content, None where there is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_write(path, error) from error


def _changes(folder: Path, files: Mapping[str, str], report: Published) -> Iterator[_Change]:
    for name in report.written:
        yield _Change(folder / name, files[name].encode())
    for name in report.removed:
        yield _Change(folder / name, None)


def _commit(folders: Sequence[Path], changes: Sequence[_Change]) -> None:
    """Stage everything beside its target first, so that only renames are left to fail; undo those that were done."""
    with ExitStack() as cleanup:
        try:
            for folder in folders:
                _sweep(folder)
            for change in changes:
                _stage(change, cleanup)
            with ExitStack() as undo:
                for change in changes:
                    _apply(change, undo)
                undo.pop_all()
        except OSError as error:
            raise _cannot_write(Path(error.filename or folders[0]), error) from error


def _sweep(folder: Path) -> None:
    """Remove what a build that was killed left behind. We hold the lock: no living one has files here."""
    if folder.is_dir():
        for suffix in (_STAGED, _BACKUP):
            for leftover in folder.rglob(f".*{suffix}"):
                leftover.unlink()


def _stage(change: _Change, cleanup: ExitStack) -> None:
    target = change.target
    # Folders are registered before their files, so theirs runs after the files have gone: what is empty then goes too.
    if change.text is None:
        cleanup.callback(_remove_if_empty, target.parent)
    missing = [parent for parent in target.parents if not parent.exists()]
    for parent in reversed(missing):
        cleanup.callback(_remove_if_empty, parent)
        parent.mkdir(exist_ok=True)
    if target.exists():
        backup = _beside(target, _BACKUP)
        cleanup.callback(_unlink, backup)
        try:
            os.link(target, backup)
        except OSError:
            shutil.copy2(target, backup)  # a file system without hard links
    if change.text is not None:
        staged = _beside(target, _STAGED)
        cleanup.callback(_unlink, staged)
        staged.write_bytes(change.text)


def _apply(change: _Change, undo: ExitStack) -> None:
    """The undoing is registered before the deed: it does no harm where the deed wasn't done."""
    target, backup = change.target, _beside(change.target, _BACKUP)
    if backup.exists():
        undo.callback(backup.replace, target)
    else:
        undo.callback(_unlink, target)
    if change.text is not None:
        _beside(target, _STAGED).replace(target)
    else:
        target.unlink()


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}{suffix}")


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _cannot_write(path: Path, error: OSError) -> VgenError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            hint = "Free some space and build again."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            hint = "Give yourself the right to write there, or choose another folder with --out."
        case errno.ENOTDIR | errno.EISDIR | errno.EEXIST:
            hint = (
                "A file stands where a folder is needed, or the reverse: move it, or choose another folder with --out."
            )
        case _:
            hint = "Choose another folder with --out."
    reason = error.strerror or type(error).__name__
    return VgenError("cannot-write", f"{path} can't be written: {reason}; nothing was changed.", hint=hint)


@contextmanager
def _exclusive(folders: Sequence[Path]) -> Iterator[None]:
    """Keep other builds away from these folders. The files that lock stand in the system's temporary folder."""
    from filelock import FileLock, Timeout

    # One user can't open what another made there; where there are no user numbers, the folder is each user's own.
    user = os.geteuid() if hasattr(os, "geteuid") else ""
    with ExitStack() as held:
        # In one order everywhere, so that two builds can't each hold what the other waits for.
        for folder in sorted({folder.resolve().parent for folder in folders}):
            name = digest(f"{user}:{folder}")[:16]
            lock = FileLock(Path(tempfile.gettempdir()) / f"vgen-{name}.lock", timeout=_PATIENCE)
            try:
                held.enter_context(lock)
            except Timeout:
                raise VgenError(
                    "busy",
                    f"Another vgen has been writing to {folder} for {_PATIENCE:.0f} seconds; nothing was changed.",
                    hint="Wait for it to end, or end it, and build again.",
                ) from None
        yield
