"""Formats generated files with ruff, and makes sure that Python compiles them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import VgenError

LINE_LENGTH = 119
"""As upstream's, so that a copied body keeps its layout."""


def checked(files: Mapping[str, str]) -> Mapping[str, str]:
    """The same files, which Python compiles.

    Raises `VgenError`: "bad-output" where it doesn't. That is a defect of vgen, never of its input.
    """
    for path, text in files.items():
        try:
            compile(text, path, "exec", dont_inherit=True)
        except SyntaxError as error:
            line = text.splitlines()[(error.lineno or 1) - 1].strip()
            raise VgenError(
                "bad-output",
                f"What vgen rendered for {path} isn't Python ({error.msg}, line {error.lineno}: {line}).",
                hint="This is a defect of vgen: please report it with the model's name.",
            ) from error
    return files


def formatted(packages: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], ...]:
    """The Python files of each package, imports sorted and laid out: the formatter runs once for all of them.

    Raises `VgenError`: "formatter".
    """
    if not packages:
        return ()
    with tempfile.TemporaryDirectory(prefix="vgen-") as folder:
        # Names that nothing is imported by: what lies beside a file would count as its own project's.
        places = [(Path(folder) / f"_{index}", files) for index, files in enumerate(packages)]
        for place, files in places:
            for path, text in files.items():
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_text(text, encoding="utf-8", newline="\n")
        settings = ["--isolated", "--no-cache", "--quiet", "--config", f"line-length={LINE_LENGTH}"]
        imports = ["--config", 'lint.isort.known-first-party=["vgen"]', "--select", "I"]
        _ruff(["check", "--fix", *settings, *imports, "."], folder)
        _ruff(["format", *settings, "."], folder)
        return tuple({path: (place / path).read_text(encoding="utf-8") for path in files} for place, files in places)


def _ruff(arguments: list[str], folder: str) -> None:
    """In that folder, because the formatter takes the working directory's packages for the project's own."""
    from ruff import find_ruff_bin

    done = subprocess.run([find_ruff_bin(), *arguments], capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        raise VgenError("formatter", f"ruff failed on generated code: {(done.stderr or done.stdout).strip()}")
