"""Cases: each folder of `cases/` has a `case.toml`, and the exact text that the commands in it print.

`case.toml` has a description and, in this order:
- `[[edit]]` entries: `file`, `find`, `replace`, made to a copy of the installed Transformers. The copy is `upstream/` in the
  folder that the commands run in; `upstream = true` makes the copy where there is no edit.
- `[[copy]]` entries: `of`, a folder or file of `tests/`, and the `path` that it is copied to, before any run.
- `[[write]]` entries: `path` and `text` of a file to write, after the runs with `first = true`; `[[link]]` entries: `path` and `to`
  of a symbolic link; `[[remove]]` entries: the `path` of a file that goes.
- `[[run]]` entries: `vgen` with the arguments of the command line, or `python` with source; `exit` with the exit status; `cwd` for
  another working directory. A run that fails must print one paragraph and change nothing
  on disk.
- `package`: a model. `expected.diff` is then how its generated package differs because of the edits.

`expected.txt` holds what the runs print on a terminal of 100 columns. VGEN_UPDATE_CASES=1 writes both files.
"""

from __future__ import annotations

import difflib
import os
import shutil
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import run_python, run_vgen
from upstreams import copy_upstream, edit_upstream

from vgen.codegen.build import generate
from vgen.codegen.lock import LOCK_NAME
from vgen.codegen.source import Source, folder, installed

CASES = sorted(path.parent for path in (Path(__file__).parent / "cases").glob("*/case.toml"))
UPDATE = bool(os.environ.get("VGEN_UPDATE_CASES"))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case(case: Path, tmp_path: Path) -> None:
    told = tomllib.loads((case / "case.toml").read_text())
    if told.get("edit") or told.get("upstream"):
        copy_upstream(tmp_path / "upstream")
    for copied in told.get("copy", []):
        copy(Path(__file__).parent / copied["of"], tmp_path / copied["path"])
    runs = told.get("run", [])
    printed = [run(each, tmp_path) for each in runs if each.get("first")]
    for edit in told.get("edit", []):
        edit_upstream(tmp_path / "upstream", **edit)
    for write in told.get("write", []):
        path = tmp_path / write["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(write["text"])
    for link in told.get("link", []):
        (tmp_path / link["path"]).symlink_to(link["to"])
    for removed in told.get("remove", []):
        (tmp_path / removed["path"]).unlink()
    printed += [run(each, tmp_path) for each in runs if not each.get("first")]
    expect(case / "expected.txt", "\n".join(printed))
    if "package" in told:
        expect(case / "expected.diff", package_diff(told["package"], folder(tmp_path / "upstream")))


def run(told: dict[str, Any], here: Path) -> str:
    """Run one command, check how it ends and what it leaves, and return what it looks like on a terminal."""
    cwd = here / told.get("cwd", ".")
    cwd.mkdir(exist_ok=True)
    before = tree(here)
    where = f"{told['cwd']} " if "cwd" in told else ""
    if "vgen" in told:
        done, title = run_vgen(*told["vgen"], cwd=cwd), f"{where}$ vgen {' '.join(told['vgen'])}"
    else:
        done, title = run_python(["-c", told["python"]], cwd=cwd), f"{where}$ python"
    output = (done.stdout + done.stderr).replace(str(here.resolve()), "<here>")
    output = output.replace(str(installed().root), "<installed>")
    assert done.returncode == told.get("exit", 0), output
    if done.returncode == 2:
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert "\n\n" not in done.stderr.strip(), "one paragraph"
        assert tree(here) == before, "a command that fails changes nothing on disk"
    assert "Traceback" not in output
    lines = [line.rstrip() for line in output.splitlines()]
    return "\n".join([title, *lines, *([f"exit {done.returncode}"] if done.returncode else []), ""])


def copy(source: Path, target: Path) -> None:
    """A folder with all that is in it, or a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def tree(here: Path) -> dict[str, tuple[bytes | str, int]]:
    """Everything below a folder, links not followed: what is in it, and when it was written."""
    found: dict[str, tuple[bytes | str, int]] = {}
    for path in here.rglob("*"):
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[path.relative_to(here).as_posix()] = (content, path.lstat().st_mtime_ns)
    return found


def package_diff(model: str, edited: Source) -> str:
    """How the package built from the edited Transformers differs from the installed one's, the lock left out."""
    before, after = installed_package(model), generate(model, edited).files
    lines: list[str] = []
    for name in sorted({*before, *after} - {LOCK_NAME}):
        old, new = before.get(name, "").splitlines(keepends=True), after.get(name, "").splitlines(keepends=True)
        lines += difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
    return "".join(lines)


@cache
def installed_package(model: str) -> dict[str, str]:
    return dict(generate(model, installed()).files)


def expect(path: Path, text: str) -> None:
    if UPDATE:
        path.write_text(text)
    assert text == path.read_text()


def test_there_are_cases() -> None:
    assert len(CASES) >= 10
