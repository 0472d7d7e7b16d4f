"""Formats generated files with ruff, and makes sure that Python compiles them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import VgenError

LINE_LENGTH = 119
"""As upstream's, so that a copied body keeps its layout."""


def formatted(files: Mapping[str, str]) -> dict[str, str]:
    """The same files, imports sorted and laid out. Python files only; others pass through.

    Raises `VgenError`: "bad-output" where what was rendered isn't Python. That is a defect of vgen, never of its input.
    """
    for path, text in files.items():
        _compile(path, text)
    with tempfile.TemporaryDirectory(prefix="vgen-") as folder:
        root = Path(folder)
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8", newline="\n")
        settings = ["--isolated", "--no-cache", "--quiet", "--config", f"line-length={LINE_LENGTH}"]
        imports = ["--config", 'lint.isort.known-first-party=["vgen"]', "--select", "I"]
        _ruff(["check", "--fix", *settings, *imports, folder])
        _ruff(["format", *settings, folder])
        return {path: (root / path).read_text(encoding="utf-8") for path in files}


def _compile(path: str, text: str) -> None:
    try:
        compile(text, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        line = text.splitlines()[(error.lineno or 1) - 1].strip()
        raise VgenError(
            "bad-output",
            f"What vgen rendered for {path} isn't Python ({error.msg}, line {error.lineno}: {line}).",
            hint="This is a defect of vgen: please report it with the model's name.",
        ) from error


def _ruff(arguments: list[str]) -> None:
    from ruff import find_ruff_bin

    done = subprocess.run([find_ruff_bin(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise VgenError("formatter", f"ruff failed on generated code: {(done.stderr or done.stdout).strip()}")
