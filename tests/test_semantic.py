"""`vgen diff --from --to`: what an edit of upstream means, said for each model before the text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from upstreams import copy_upstream, edit_upstream

from vgen.cli import cli
from vgen.codegen.analyze.model import analyze
from vgen.codegen.catalogue import Failure, all_packages
from vgen.codegen.facts import ModelFacts, Role
from vgen.codegen.package import Package
from vgen.codegen.plan import Granularity, Plan
from vgen.codegen.planning import make_plan
from vgen.codegen.semantic import Change, Effect, Kind, changes
from vgen.codegen.source import Source, folder, installed

QWEN2 = "transformers/models/qwen2/modeling_qwen2.py"
VISION = "transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py"
POSITIONS = "position_ids = get_vision_position_ids(grid_thw, self.spatial_merge_size, kwargs=kwargs)"


def read(source: Source, model: str) -> tuple[ModelFacts, Plan]:
    facts = analyze(source, model)
    return facts, make_plan(facts, Granularity.AUTO)


@cache
def original(model: str) -> tuple[ModelFacts, Plan]:
    return read(installed(), model)


Edit = Callable[..., tuple[Change, ...]]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """The changes of a model after edits, each a pair of texts, of one file."""

    def edited(model: str, file: str, *edits: tuple[str, str]) -> tuple[Change, ...]:
        upstream = copy_upstream(tmp_path / "upstream")
        for find, replace in edits:
            edit_upstream(upstream, file, find, replace)
        return changes(original(model), read(folder(upstream), model))

    return edited


def said(found: tuple[Change, ...]) -> set[tuple[str, str, str]]:
    return {(change.kind.value, change.effect.value, change.subject) for change in found}


@pytest.mark.parametrize("model", ["qwen2", "qwen2_5_vl"])
def test_the_same_source_has_no_changes(model: str) -> None:
    assert changes(original(model), original(model)) == ()


def test_moved_lines_are_no_change(edited: Edit) -> None:
    assert edited("qwen2", QWEN2, ("import torch\n", "\n\n\nimport torch\n")) == ()


def test_parameters_come_and_change(edited: Edit) -> None:
    model = "class Qwen2Model(Qwen2PreTrainedModel):"
    text = (installed().root / QWEN2).read_text()
    forward = text[text.index("    def forward(", text.index(model)) :]
    forward = forward[: forward.index(") ->")]
    changed = forward.replace("use_cache: bool | None = None", "use_cache: bool = True, extra: int = 7")
    assert changed != forward
    start = text[text.index(model) : text.index(forward, text.index(model))]
    found = edited("qwen2", QWEN2, (start + forward, start + changed))
    assert said(found) == {
        ("parameter", "came", "Qwen2Model.forward(extra)"),
        ("parameter", "changed", "Qwen2Model.forward(use_cache)"),
    }
    by_subject = {change.subject: change for change in found}
    use_cache = by_subject["Qwen2Model.forward(use_cache)"]
    assert (use_cache.before, use_cache.after) == ("bool | None = None", "bool = True")
    assert use_cache.new is not None
    assert use_cache.new.file == QWEN2


def test_a_renamed_class_is_one_change(tmp_path: Path) -> None:
    upstream = copy_upstream(tmp_path / "upstream")
    text = (installed().root / QWEN2).read_text()
    edit_upstream(upstream, QWEN2, text, text.replace("Qwen2DecoderLayer", "Qwen2DecodingLayer"))
    found = changes(original("qwen2"), read(folder(upstream), "qwen2"))
    assert said(found) == {("class", "renamed", "Qwen2DecoderLayer")}
    assert found[0].after == "Qwen2DecodingLayer"


def test_a_renamed_region_keeps_its_contract(tmp_path: Path) -> None:
    upstream = copy_upstream(tmp_path / "upstream")
    text = (installed().root / VISION).read_text()
    edit_upstream(upstream, VISION, text, text.replace("Qwen2_5_VLTextModel", "Qwen2_5_VLWordsModel"))
    found = changes(original("qwen2_5_vl"), read(folder(upstream), "qwen2_5_vl"))
    assert ("class", "renamed", "Qwen2_5_VLTextModel") in said(found)
    assert not [change for change in found if change.kind in (Kind.REGION, Kind.CONTRACT, Kind.CARRIER, Kind.CHILD)]


def test_a_class_that_moved_to_another_file(tmp_path: Path) -> None:
    upstream = copy_upstream(tmp_path / "upstream")
    text = (installed().root / QWEN2).read_text()
    start = text.index("class Qwen2MLP(")
    end = text.index("\n\n\n", start)
    edit_upstream(upstream, QWEN2, text[start:end], "from .parts import Qwen2MLP")
    heading = "from torch import nn\nfrom ...activations import ACT2FN\n\n\n"
    (upstream / "transformers/models/qwen2/parts.py").write_text(f"{heading}{text[start:end]}\n")
    found = changes(original("qwen2"), read(folder(upstream), "qwen2"))
    assert said(found) == {("class", "moved", "Qwen2MLP")}
    assert found[0].after == "transformers/models/qwen2/parts.py"


def test_a_helper_that_is_no_longer_hoistable(edited: Edit) -> None:
    found = edited("qwen2_5_vl", VISION, (POSITIONS, POSITIONS.replace(", kwargs=kwargs", "")))
    helper = (
        "hoistable helper",
        "went",
        "get_vision_position_ids in Qwen2_5_VisionTransformerPretrainedModel.forward",
    )
    assert helper in said(found)
    assert ("contract", "went", "qwen2_5_vl.encoder: position_ids") in said(found)


def test_a_dimension_of_a_contract(edited: Edit) -> None:
    shape = "of shape `(seq_len, hidden_size)`):\n                The final"
    found = edited("qwen2_5_vl", VISION, (shape, shape.replace("seq_len, ", "batch_size, seq_len, ")))
    contract = [change for change in found if change.kind is Kind.CONTRACT]
    assert [(change.effect, change.subject) for change in contract] == [
        (Effect.CHANGED, "qwen2_5_vl.encoder: hidden_states")
    ]
    assert contract[0].before is not None
    assert contract[0].after is not None
    assert contract[0].after.count(",") == contract[0].before.count(",") + 1


def test_a_rewrite_that_no_longer_applies(edited: Edit) -> None:
    lengths = "lengths = cu_seqlens[1:] - cu_seqlens[:-1]\n"
    found = edited("qwen2_5_vl", VISION, (lengths, "lengths = self.something(cu_seqlens)\n"))
    told = said(found)
    assert ("rewrite", "went", "packed-attention on Qwen2_5_VLVisionAttention.forward") in told
    assert [
        change.effect for change in found if change.kind is Kind.HAZARD and "lengths.tolist()" in change.subject
    ] == [Effect.UNRESOLVED]


def test_granularity_by_a_hazard_outside_the_layers(edited: Edit) -> None:
    found = edited(
        "qwen2_5_vl",
        VISION,
        (POSITIONS, f"{POSITIONS}\n        if hidden_states.sum() > 0:\n            hidden_states = -hidden_states"),
    )
    told = [change for change in found if change.kind is Kind.GRANULARITY]
    assert [(change.subject, change.effect) for change in told] == [("qwen2_5_vl.encoder", Effect.CHANGED)]
    assert told[0].before == "whole: Qwen2_5_VisionTransformerPretrainedModel"
    assert told[0].after is not None
    assert told[0].after.startswith("block: Qwen2_5_VLVisionBlock")
    assert not [change for change in found if change.kind is Kind.REGION and change.effect is Effect.WENT]


def test_backwards_what_came_went(tmp_path: Path) -> None:
    upstream = copy_upstream(tmp_path / "upstream")
    edit_upstream(upstream, VISION, POSITIONS, POSITIONS.replace(", kwargs=kwargs", ""))
    other = read(folder(upstream), "qwen2_5_vl")
    opposite = {
        Effect.CAME: Effect.WENT,
        Effect.WENT: Effect.CAME,
        Effect.RESOLVED: Effect.UNRESOLVED,
        Effect.UNRESOLVED: Effect.RESOLVED,
    }
    there = changes(original("qwen2_5_vl"), other)
    back = changes(other, original("qwen2_5_vl"))
    assert there
    turned = {(change.kind, opposite.get(change.effect, change.effect), change.subject) for change in there}
    assert turned == {(change.kind, change.effect, change.subject) for change in back}


# The command line.


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(cli, ["diff", *arguments])


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Transformers in which qwen2's decoder takes one argument more, and llama has another comment."""
    upstream = copy_upstream(tmp_path / "upstream")
    mark = "class Qwen2Model(Qwen2PreTrainedModel):"
    text = (installed().root / QWEN2).read_text()
    start = text[text.index(mark) : text.index("        use_cache: bool", text.index(mark))]
    edit_upstream(upstream, QWEN2, start, f"{start}        extra: int = 7,\n")
    llama = "transformers/models/llama/modeling_llama.py"
    edit_upstream(upstream, llama, "import torch\n", "# Lines move.\n\nimport torch\n")
    return upstream


def test_semantics_come_before_the_text_and_only_what_changed(other: Path) -> None:
    done = run("--from", "installed", "--to", str(other), "llama", "qwen2")
    assert done.exit_code == 1, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "qwen2"
    assert lines[1].startswith("  + parameter came: Qwen2Model.forward(extra): int = 7  modeling_qwen2.py:")
    assert lines.index("--- a/qwen2/modeling_qwen2.py") > 1
    assert "+        extra: int = 7," in lines
    assert "1 of 2 models changed" in done.stdout
    assert "llama" not in done.stdout


def test_without_the_text(other: Path) -> None:
    done = run("--from", str(other), "--no-text", "qwen2")
    assert done.exit_code == 1
    assert "  - parameter went: Qwen2Model.forward(extra)" in done.stdout
    assert "+++" not in done.stdout


def test_json(other: Path) -> None:
    done = run("--from", "installed", "--to", str(other), "--json", "qwen2", "llama")
    data = json.loads(done.stdout)
    assert done.exit_code == 1
    assert data["compared"] == 2
    (model,) = data["models"]
    assert model["model"] == "qwen2"
    assert model["changes"][0]["kind"] == "parameter"
    assert model["changes"][0]["new"]["file"] == QWEN2
    assert "+++ b/qwen2/modeling_qwen2.py" in model["diff"]
    assert data["totals"]["parameter came"] == 1


def test_the_same_release_twice(other: Path) -> None:
    done = run("--from", str(other), "--to", str(other), "qwen2")
    assert (done.exit_code, done.stdout.splitlines()[0].endswith("0 of 1 models changed")) == (0, True)


def test_a_model_that_no_longer_builds_is_told(other: Path) -> None:
    edit_upstream(other, QWEN2, "class Qwen2RMSNorm(", "class Qwen2RMSNorm((")
    done = run("--from", "installed", "--to", str(other), "--no-text", "qwen2")
    assert done.exit_code == 1
    assert "  ~ model changed: qwen2: built → not built: Python can't parse this file" in done.stdout


def test_a_model_that_is_gone(other: Path) -> None:
    edit_upstream(other, QWEN2, "class Qwen2RMSNorm(", "class Qwen2RMSNorm((")
    (other / QWEN2).unlink()
    done = run("--from", "installed", "--to", str(other), "--no-text", "qwen2")
    assert done.exit_code == 1
    assert "  - model went: qwen2: built  modeling_qwen2.py:1 before" in done.stdout


def test_a_wheel(tmp_path: Path) -> None:
    root = installed().root
    wheel = tmp_path / "transformers-0-py3-none-any.whl"
    models = root / "transformers" / "models"
    with zipfile.ZipFile(wheel, "w") as archive:
        files = [*(root / "transformers").glob("*.py"), *(root / "transformers" / "utils").glob("*.py")]
        files += (root / "transformers" / "integrations").glob("*.py")
        for path in (*files, *(models / "auto").glob("*.py"), *(models / "qwen2").glob("*.py")):
            archive.write(path, path.relative_to(root).as_posix())
        archive.writestr("../outside.py", "raise SystemExit")
    done = run("--from", str(wheel), "qwen2")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "outside.py").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "5.20.0"], "--download fetches that version"),
        (["--from", "nothing/such"], "nothing/such doesn't exist"),
        (["--from", __file__], "can't be unpacked"),
        (["--from", str(Path(__file__).parent)], "holds no Transformers"),
        (["--to", "installed"], "go with --from"),
        (["--from", "installed", "--out", "x"], "have no say"),
        (["--from", "installed", "no_such_model"], "has a model 'no_such_model'"),
    ],
)
def test_errors_are_one_paragraph(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


# Real releases, from the registry.


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Wheels by version, each downloaded once."""
    into = tmp_path_factory.mktemp("wheels")

    @cache
    def release(version: str) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        # What holds an environment to one release, as CI's constraints do, would forbid the others.
        free = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        subprocess.run([*command, "--dest", str(into), f"transformers=={version}"], check=True, env=free)
        (wheel,) = into.glob(f"transformers-{version}-*.whl")
        return wheel

    return release


@pytest.mark.slow
def test_a_helper_became_hoistable_between_releases(releases: Callable[[str], Path]) -> None:
    old, new = str(releases("5.15.0")), str(releases("5.23.0"))
    done = run("--from", old, "--to", new, "--no-text", "minimax_m3_vl", "pixtral")
    assert done.exit_code == 1, done.output
    helper = "hoistable helper came: get_vision_position_ids in MiniMaxM3VLVisionModel.forward"
    assert helper in done.stdout
    assert "class renamed: PixtralRotaryEmbedding → PixtralVisionRotaryEmbedding" in done.stdout
    assert "5.15.0 → 5.23.0: 2 of 2 models changed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5.15.0", "5.24.0"])
def test_other_releases_build(version: str, releases: Callable[[str], Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(releases(version)) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if name.endswith(".py")])
    source = folder(tmp_path)
    assert source.version == version
    built = list(all_packages(source))
    failed = [each for each in built if isinstance(each, Failure)]
    assert len(failed) <= 0.03 * len(built), [each.reason for each in failed]
    # A release that renames what decoders are known by would make encoders of them.
    regions = [region for each in built if isinstance(each, Package) for region in each.plan.regions]
    assert sum(region.role is not Role.ENCODER for region in regions) >= 200
