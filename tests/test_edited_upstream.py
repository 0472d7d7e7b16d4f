"""A copy of Transformers that somebody edited: `check` names the class, and `diff` shows what it means."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vgen.cli import cli

MODEL = "qwen2"


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """The installed Transformers by links, but for one model's folder, which is a copy."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    original, copy = Path(spec.origin).parent, tmp_path / "upstream" / "transformers"
    (copy / "models").mkdir(parents=True)
    for source, target in ((original, copy), (original / "models", copy / "models")):
        for path in source.iterdir():
            if path.name not in ("models", MODEL, "__pycache__"):
                (target / path.name).symlink_to(path)
    shutil.copytree(original / "models" / MODEL, copy / "models" / MODEL)
    return copy.parent


@pytest.fixture
def modeling(upstream: Path) -> Path:
    return upstream / "transformers" / "models" / MODEL / f"modeling_{MODEL}.py"


def run(command: str, out: Path, upstream: Path) -> Result:
    arguments = [command, MODEL, "--out", str(out), "--transformers", str(upstream)]
    return CliRunner(env={"COLUMNS": "100"}).invoke(cli, arguments)


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_an_edit_is_named_and_shown(tmp_path: Path, upstream: Path, modeling: Path) -> None:
    out = tmp_path / "out"
    assert run("build", out, upstream).exit_code == 0
    assert run("check", out, upstream).stdout == f"{MODEL}: same\n"
    edit(modeling, "use_cache: bool | None = None,\n", "use_cache: bool | None = None,\n        extra: int = 7,\n")
    checked = run("check", out, upstream)
    assert checked.exit_code == 1
    assert "  CHANGED modeling_qwen2.py" in checked.stdout
    assert "Qwen2Model changed upstream (transformers/models/qwen2/modeling_qwen2.py)" in checked.stdout
    assert "Qwen2RMSNorm" not in checked.stdout
    shown = run("diff", out, upstream)
    assert shown.exit_code == 1
    assert "+        extra: int = 7," in shown.stdout


def test_an_edit_of_a_class_that_isnt_used_changes_nothing(tmp_path: Path, upstream: Path, modeling: Path) -> None:
    out = tmp_path / "out"
    run("build", out, upstream)
    modeling.write_text(modeling.read_text() + "\n\nclass Unused:\n    pass\n")
    assert run("check", out, upstream).stdout == f"{MODEL}: same\n"


def test_a_syntax_error_upstream_is_one_paragraph(tmp_path: Path, upstream: Path, modeling: Path) -> None:
    out = tmp_path / "out"
    run("build", out, upstream)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    edit(modeling, "class Qwen2Model(", "class Qwen2Model((")
    for command in ("build", "check", "diff", "explain"):
        arguments = [command, MODEL, "--transformers", str(upstream)]
        if command != "explain":
            arguments += ["--out", str(out)]
        result = CliRunner(env={"COLUMNS": "100"}).invoke(cli, arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: transformers/models/qwen2/modeling_qwen2.py:")
        assert "\n\n" not in result.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_two_builds_give_the_same_bytes(tmp_path: Path, upstream: Path) -> None:
    for name in ("one", "two"):
        assert run("build", tmp_path / name, upstream).exit_code == 0
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
