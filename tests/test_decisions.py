"""`[tool.vgen.models.<name>]`: what the user decides is built, remembered in the lock, and checked."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import run_vgen
from upstreams import copy_upstream, edit_upstream

from vgen.cli import cli
from vgen.codegen.decisions import Decisions, from_rows, read_decisions
from vgen.codegen.errors import VgenError
from vgen.codegen.source import Source

LLAMA = "transformers/models/llama/modeling_llama.py"

PROJECT = """
[project]
name = "mine"

[tool.vgen.models.blip_2]
encoders = { image = "Blip2QFormerModel" }
leave-out = ["Blip2VisionModel"]

[tool.vgen.models.llama]
granularity = "block"
"""


def project(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def test_decisions_change_what_is_built_and_a_check_repeats_them(tmp_path: Path) -> None:
    project(tmp_path, PROJECT)
    below = tmp_path / "src"
    below.mkdir()
    done = run_vgen("build", "blip_2", "llama", "--out", "made", cwd=below)
    assert done.returncode == 0, done.stderr
    text = (below / "made" / "blip_2" / "modeling_blip_2.py").read_text(encoding="utf-8")
    assert "class Blip2QFormerModel(AsUpstream, Compiled, upstream.Blip2QFormerModel):" in text
    assert "Compiled, upstream.Blip2VisionModel" not in text
    assert "LlamaDecoderLayer(Compiled" in (below / "made" / "llama" / "modeling_llama.py").read_text(encoding="utf-8")
    lock = tomllib.loads((below / "made" / "blip_2" / "vgen.lock").read_text(encoding="utf-8"))
    assert lock["decisions"] == {"encoders.image": "Blip2QFormerModel", "leave-out": "Blip2VisionModel"}
    (tmp_path / "pyproject.toml").unlink()
    done = run_vgen("check", "--out", "made", cwd=below)
    assert (done.returncode, done.stdout) == (0, "blip_2: same\nllama: same\n")


def test_the_cache_tells_decisions_apart(tmp_path: Path) -> None:
    def build() -> str:
        done = run_vgen(
            "build", "llama", "--out", "made", cwd=tmp_path, VGEN_CACHE="", XDG_CACHE_HOME=str(tmp_path / "c")
        )
        assert done.returncode == 0, done.stderr
        return (tmp_path / "made" / "llama" / "modeling_llama.py").read_text(encoding="utf-8")

    plain = build()
    project(tmp_path, PROJECT)
    decided = build()
    assert decided != plain
    (tmp_path / "pyproject.toml").unlink()
    assert build() == plain


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[tool.vgen.models.llama]\ndecoders = 'a'\n", 2, "unknown key `decoders`"),
        ("[tool.vgen.models.llama]\ndecoder = 3\n", 2, "neither a way of attributes nor the name of a class"),
        ("[tool.vgen.models.llama]\n\ngranularity = 'all'\n", 3, "'all'"),
        ("[tool.vgen.models.llama]\nleave-out = 'A'\n", 2, "isn't a list of class names"),
        ("[tool.vgen.models.llama]\nencoders = { smell = 'a' }\n", 2, "unknown key `smell`"),
        ("[tool.vgen]\nmodel = 1\n", 2, "unknown key `model`"),
        ("[tool.vgen]\nmodels = 1\n", 2, "isn't a table"),
        ("a = 1\nb = \n", 2, "this isn't TOML"),
    ],
)
def test_a_wrong_entry_is_one_paragraph_with_its_place(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(VgenError) as raised:
        read_decisions(project(tmp_path, text))
    assert f"pyproject.toml:{line}: " in str(raised.value)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tool.vgen.models.llama]\ndecoder = 'model.elsewhere'\n", 'is "model.elsewhere", but no model'),
        ("[tool.vgen.models.llama]\nleave-out = ['Elsewhere']\n", "names Elsewhere"),
        ("[tool.vgen.models.lama]\ngranularity = 'block'\n", "`lama` in [tool.vgen.models] is no model"),
    ],
)
def test_a_decision_that_leads_nowhere_stops_the_build(tmp_path: Path, text: str, says: str) -> None:
    project(tmp_path, text)
    done = run_vgen("build", "llama", "--out", "made", cwd=tmp_path)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert not (tmp_path / "made").exists()


def test_decisions_survive_the_lock() -> None:
    decided = Decisions(
        decoder="a.b", encoders=(("audio", "c"), ("image", "d.e")), granularity="block", leave_out=("A", "B")
    )
    assert from_rows(decided.rows()) == decided
    assert from_rows({}) == Decisions()


def test_an_override_that_cant_be_followed_names_the_entry_to_write() -> None:
    done = run_vgen("explain", "blip_2")
    assert "[tool.vgen.models.blip_2] of pyproject.toml" in " ".join(done.stdout.split()), done.stdout[-1500:]


BLOCKS = '[tool.vgen.models.llama]\ngranularity = "block"\n'


def test_a_report_is_of_what_a_build_here_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path, BLOCKS))
    monkeypatch.setattr(Source, "models", lambda self: ("llama",))
    done = CliRunner().invoke(cli, ["report"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "docs" / "support.md").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith("| llama |"))
    assert "LlamaDecoderLayer" in row
    assert "| block |" in row


def test_releases_are_compared_as_they_would_be_built_here(tmp_path: Path) -> None:
    root = copy_upstream(tmp_path / "upstream")
    before = "        position_ids: torch.LongTensor | None = None,\n        past_key_values: Cache | None = None,\n        use_cache: bool"
    edit_upstream(root, LLAMA, before, f"        extra: torch.Tensor | None = None,\n{before}")
    arguments = ("diff", "--from", "installed", "--to", str(root), "llama", "--no-text")
    assert "contract" not in run_vgen(*arguments, cwd=tmp_path).stdout
    project(tmp_path, BLOCKS)
    done = run_vgen(*arguments, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "contract came: llama.decoder.block: extra" in done.stdout


def test_a_model_of_the_users_own_may_have_decisions_too(tmp_path: Path) -> None:
    project(tmp_path, '[tool.vgen.models.tessera]\ngranularity = "block"\n')
    shutil.copy(Path(__file__).parent / "outside" / "single" / "modeling_tessera.py", tmp_path)
    done = run_vgen("build", "./modeling_tessera.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "TesseraBlock(Compiled" in (tmp_path / "generated/tessera/modeling_tessera.py").read_text(encoding="utf-8")
    assert run_vgen("check", "tessera", cwd=tmp_path).stdout == "tessera: same\n"
    # It is nobody's slip: another model is built beside it.
    assert run_vgen("build", "gpt2", "--out", "made", cwd=tmp_path).returncode == 0
