"""`vgen build --all`, on a Transformers of some twenty models; the whole catalogue is another test's."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import run_python, run_vgen
from upstreams import edit_upstream

from vgen.codegen import build, workers
from vgen.codegen.package import DEFECT, NO_REGION, Failure, Options, Package
from vgen.codegen.parallel import FEW, build_all
from vgen.codegen.source import Source, folder, installed

MODELS = [
    "albert",
    "bart",
    "bert",
    "clip",
    "dac",
    "encodec",
    "gemma3",
    "gpt2",
    "internvl",
    "llama",
    "llava",
    "mistral",
]
MODELS += ["mixtral", "qwen2", "qwen2_5_vl", "qwen2_vl", "qwen3", "siglip", "t5", "whisper", "xcodec"]
EMPTY = ["dac", "encodec", "xcodec"]
"""Nothing in these can be compiled."""

FULL = [model for model in MODELS if model not in EMPTY]


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A Transformers, a cache and a folder for packages of a test's own."""

    upstream: Path
    out: Path
    cache: Path

    def build(self, *options: str, models: tuple[str, ...] = ("--all",)) -> subprocess.CompletedProcess[str]:
        fixed = ("--transformers", str(self.upstream), "--out", str(self.out))
        return run_vgen("build", *models, *fixed, *options, XDG_CACHE_HOME=str(self.cache), VGEN_CACHE="on")

    def files(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.out)): path.read_bytes() for path in self.out.rglob("*") if path.is_file()}


def make(root: Path, models: list[str]) -> Workplace:
    """Links to the installed Transformers: all of it but for most models."""
    original, copy = installed().root / "transformers", root / "upstream" / "transformers"
    (copy / "models").mkdir(parents=True)
    for path in original.iterdir():
        if path.name not in ("models", "__pycache__"):
            (copy / path.name).symlink_to(path)
    (copy / "models" / "auto").mkdir()
    # The auto classes themselves are no model here: there would be nothing to compile in them.
    for path in (original / "models" / "auto").glob("*.py"):
        (copy / "models" / "auto" / path.name).symlink_to(path)
    for model in models:
        (copy / "models" / model).symlink_to(original / "models" / model)
    return Workplace(upstream=copy.parent, out=root / "out", cache=root / "cache")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return make(tmp_path, ["llama", "qwen2", "dac"])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, dict[str, Any]]:
    """Everything, built by two processes without a cache: where, and what the command said."""
    place = make(tmp_path_factory.mktemp("all"), MODELS)
    done = place.build("--json", "--jobs", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    return place, json.loads(done.stdout)


def test_every_model_is_written_or_has_a_reason(first: tuple[Workplace, dict[str, Any]]) -> None:
    place, said = first
    assert len(FULL) > FEW, "several processes had to build"
    assert [package["model"] for package in said["packages"]] == FULL
    assert sorted(path.name for path in place.out.iterdir()) == FULL
    assert all((place.out / model / "vgen.lock").is_file() for model in FULL)
    assert [failure["model"] for failure in said["failures"]] == ["auto", *EMPTY]
    for failure in said["failures"]:
        assert failure["code"] == NO_REGION
        assert failure["reason"]
        assert (place.upstream / failure["span"]["file"]).is_file()
        assert failure["span"]["line"] >= 1


def test_a_package_is_as_one_built_alone(first: tuple[Workplace, dict[str, Any]], tmp_path: Path) -> None:
    """Formatted with others or alone, in another process, in another order: the same bytes, and the same said of it."""
    place, said = first
    alone = Workplace(upstream=place.upstream, out=tmp_path / "out", cache=tmp_path / "cache")
    for models in (("qwen2_5_vl",), ("whisper", "llava", "bert")):
        done = alone.build("--json", models=models)
        for package in json.loads(done.stdout)["packages"]:
            (other,) = (each for each in said["packages"] if each["model"] == package["model"])
            told = ("model", "regions", "lines", "uses", "written")
            assert {key: package[key] for key in told} == {key: other[key] for key in told}
    files = place.files()
    assert len(alone.files()) == 12
    assert all(files[path] == content for path, content in alone.files().items())


def test_one_process_writes_what_two_do(first: tuple[Workplace, dict[str, Any]], tmp_path: Path) -> None:
    place, said = first
    single = Workplace(upstream=place.upstream, out=tmp_path / "out", cache=tmp_path / "cache")
    done = single.build("--json", "--jobs", "1")
    assert done.returncode == 0
    assert single.files() == place.files()
    again = json.loads(done.stdout)
    for package in (*again["packages"], *said["packages"]):
        for place_of in ("folder", "condition"):
            package.pop(place_of, None)
    assert again == said


def test_again_nothing_is_built_or_written(first: tuple[Workplace, dict[str, Any]]) -> None:
    place, _ = first
    before = {path: path.stat().st_mtime_ns for path in place.out.rglob("*")}
    command = ["-X", "importtime", "-m", "vgen.cli", "build", "--all", "--transformers", str(place.upstream)]
    done = run_python([*command, "--out", str(place.out)], XDG_CACHE_HOME=str(place.cache), VGEN_CACHE="on")
    assert done.returncode == 0
    assert f"unchanged  {3 * len(FULL)} files" in done.stdout
    assert "\n  written" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in place.out.rglob("*")} == before
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import")}
    assert "vgen.codegen.sweep" in imported
    assert not {"libcst", "jinja2", "ruff", "vgen.codegen.build", "torch", "transformers"} & imported


def test_the_summary_counts(first: tuple[Workplace, dict[str, Any]]) -> None:
    place, said = first
    for width in (80, 100, 160):
        shown = run_vgen(
            *("build", "--all", "--transformers", str(place.upstream), "--out", str(place.out)),
            XDG_CACHE_HOME=str(place.cache),
            VGEN_CACHE="on",
            COLUMNS=str(width),
        ).stdout
        regions = [region for package in said["packages"] for region in package["regions"]]
        assert shown.startswith(f"{len(FULL)} packages  {len(regions)} regions, ")
        decoders = sum(region["role"] == "decoder" and region["granularity"].startswith("whole") for region in regions)
        assert f"\n  decoder{decoders:>8}" in shown
        assert "\nNot built (4)\n" in shown
        assert re.search(r"^  dac +modeling_dac\.py:1: ", shown, re.MULTILINE)
        assert max(map(len, shown.splitlines())) <= width


def test_only_what_an_edit_touches_is_built(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.cache))
    monkeypatch.delenv("VGEN_CACHE")

    def begun() -> list[str]:
        found: list[str] = []
        source = folder(place.upstream)
        for _ in build_all(source.models(), source, step=lambda model, done: None if done else found.append(model)):
            pass
        return found

    assert begun() == ["auto", "dac", "llama", "qwen2"]
    assert begun() == []
    edit_upstream(
        place.upstream, "transformers/models/qwen2/modeling_qwen2.py", "class Qwen2MLP(", "\nclass Qwen2MLP("
    )
    assert begun() == ["qwen2"]
    edit_upstream(place.upstream, "transformers/modeling_layers.py", "class GradientC", "\nclass GradientC")
    assert {"llama", "qwen2"} <= set(begun())
    assert begun() == []


def test_one_that_fails_stops_no_other(place: Workplace) -> None:
    edit_upstream(
        place.upstream, "transformers/models/llama/modeling_llama.py", "class LlamaModel(", "class LlamaModel(("
    )
    done = place.build("--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    (failure,) = (each for each in said["failures"] if each["code"] != NO_REGION)
    assert failure["model"] == "llama"
    assert failure["code"] == "syntax"
    line = failure["span"]["line"]
    text = (place.upstream / failure["span"]["file"]).read_text().splitlines()[line - 1]
    assert "class LlamaModel((" in text
    assert [path.name for path in place.out.iterdir()] == ["qwen2"]
    shown = place.build()
    assert shown.returncode == 1
    assert f"\n  llama  modeling_llama.py:{line}: Python can't parse this file" in shown.stdout


def test_a_package_that_was_edited_stays_and_the_others_are_written(place: Workplace) -> None:
    place.out.mkdir()
    (place.out / "llama").mkdir()
    mine = place.out / "llama" / "__init__.py"
    mine.write_text("# mine\n")
    done = place.build("--json")
    assert done.returncode == 1
    (failure,) = (each for each in json.loads(done.stdout)["failures"] if each["code"] != NO_REGION)
    assert (failure["model"], failure["code"]) == ("llama", "foreign-file")
    assert list((place.out / "llama").iterdir()) == [mine], "all of a package or nothing"
    assert (place.out / "qwen2" / "vgen.lock").is_file()
    assert place.build("--force").returncode == 0
    assert "mine" not in mine.read_text()


def test_files_of_others_are_left_alone_until_force(place: Workplace) -> None:
    assert place.build().returncode == 0
    mine = place.out / "qwen2" / "notes.py"
    mine.write_text("# mine\n")
    done = place.build()
    assert "left alone, not vgen's  1 files" in done.stdout
    assert mine.exists()
    assert "removed    1 files" in place.build("--force").stdout
    assert not mine.exists()


def test_packages_that_stand_alone_have_their_runtime(place: Workplace) -> None:
    done = place.build("--standalone", "--json")
    assert done.returncode == 0, done.stderr
    (runtime,) = json.loads(done.stdout)["runtime"]
    assert "region.py" in runtime["written"]
    text = (place.out / "qwen2" / "modeling_qwen2.py").read_text()
    assert "from ..vgen_runtime import" in text
    (again,) = json.loads(place.build("--standalone", "--json").stdout)["runtime"]
    assert not again["written"]


def test_a_defect_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    analyze: Callable[..., Any] = build.analyze

    def failing(source: Source, model: str, *decisions: Any) -> Any:
        return {}["nothing"] if model == "llama" else analyze(source, model, *decisions)

    monkeypatch.setattr(build, "analyze", failing)
    found = workers.build_chunk(("llama", "qwen2"), installed(), Options(), None, lambda model, done: None)
    assert isinstance(found[0], Failure)
    assert found[0].code == DEFECT
    assert "KeyError: 'nothing' (test_all.py:" in found[0].reason
    assert isinstance(found[1], Package)


@pytest.mark.parametrize(
    "arguments", [[], ["qwen2", "--all"], ["qwen2", "--jobs", "2"], ["--all", "--jobs", "0"], ["--all", "--jobs", "x"]]
)
def test_what_makes_no_sense_is_refused(arguments: list[str], tmp_path: Path) -> None:
    done = run_vgen("build", *arguments, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_who_watches_sees_the_model_at_work(place: Workplace) -> None:
    """On a terminal there is a bar with names, and none of it in the output."""
    terminal, side = pty.openpty()
    command = [sys.executable, "-m", "vgen.cli", "build", "--all", "--transformers", str(place.upstream)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*command, "--out", str(place.out)], stdout=subprocess.PIPE, stderr=side, env=environment, text=True
    )
    os.close(side)
    seen = b""
    while True:
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
    output, _ = process.communicate()
    os.close(terminal)
    assert process.returncode == 0
    assert b"qwen2" in seen
    assert b"/4" in seen
    assert b"left" in seen
    assert output.startswith("2 packages")
    assert "\x1b" not in output
