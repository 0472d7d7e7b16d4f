"""For all tests: helper modules that lie beside them, no network, and the command line as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Helper modules are imported by their plain names: pytest's importlib mode leaves the path as it is.
sys.path.insert(0, str(Path(__file__).parent))

os.environ["HF_HUB_OFFLINE"] = "1"
# Tests change vgen and Transformers as they run: what one of them built is nothing for the next, nor for the user.
os.environ["VGEN_CACHE"] = "off"


def run_python(
    arguments: Sequence[str], *, cwd: Path | None = None, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A fresh Python process, on a plain terminal of 100 columns."""
    fixed = {"COLUMNS": "100", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **fixed, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_vgen(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command line, in a process of its own."""
    return run_python(["-m", "vgen.cli", *arguments], cwd=cwd, **environment)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is built here is remembered here: the user's cache is neither read nor filled."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dotted name of a folder of packages that the command line built for this test session: mixtral is in it."""
    root = tmp_path_factory.mktemp("session")
    done = run_vgen("build", "mixtral", "--out", "session_models", cwd=root)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(root))
    yield "session_models"
    sys.path.remove(str(root))


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder with every package, and what the command that built it said: minutes, so once for all of pytest's processes."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, said = root / "catalogue" / "everything", root / "catalogue.json"
    with FileLock(root / "catalogue.lock"):
        if not said.is_file():
            done = run_vgen("build", "--all", "--out", str(folder), "--json", timeout=1800)
            assert done.returncode == 0, done.stderr[-2000:]
            said.write_text(done.stdout)
    return folder, json.loads(said.read_text())
