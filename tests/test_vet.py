"""`vgen vet`: which findings there are, how they are shown, and how it ends."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from upstreams import copy_upstream, edit_upstream

from vgen.cli import cli
from vgen.codegen.analyze.model import analyze
from vgen.codegen.facts import HazardKind, HazardLevel, ModelFacts
from vgen.codegen.plan import Granularity
from vgen.codegen.source import installed
from vgen.codegen.vet import ADVICE, at_least, findings, unresolved

LFM3 = "transformers/models/lfm3_vl/modeling_lfm3_vl.py"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


def vet(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["vet", *arguments], catch_exceptions=False)


@cache
def facts(model: str) -> ModelFacts:
    return analyze(installed(), model)


def test_every_kind_has_an_advice() -> None:
    assert set(ADVICE) == set(HazardKind)


def test_a_model_with_nothing_left_is_fine() -> None:
    result = vet("llama", "qwen2_5_vl")
    assert result.exit_code == 0
    assert "llama: no hazards unresolved; resolved: 1 by rope check" in result.stdout
    assert re.search(
        r"qwen2_5_vl: no hazards unresolved; resolved: 2 by packed-attention, \d by prologue", result.stdout
    )


def test_what_is_left_is_said_with_its_place_and_an_advice() -> None:
    result = vet("lfm3_vl")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    at = next(index for index, line in enumerate(lines) if "grid_thw.tolist()" in line and "modeling" in line)
    place, message = lines[at].split(": warning: ")
    assert message == "`grid_thw.tolist()` reads a tensor's values on the host [host-read]"
    assert lines[at + 1 : at + 3] == ["    in Lfm3VlVisionModel; unresolved", f"    {ADVICE[HazardKind.HOST_READ]}"]
    file, line, column = place.split(":")
    assert file == LFM3
    text = (installed().root / file).read_text().splitlines()[int(line) - 1]
    assert text[int(column) - 1 :].startswith("grid_thw.tolist()")


def test_the_level_decides_what_counts() -> None:
    assert vet("lfm3_vl", "--level", "error").exit_code == 0
    assert "layer-number" not in vet("llama").stdout
    noted = vet("llama", "--level", "note")
    assert noted.exit_code == 1
    assert "[layer-number]" in noted.stdout
    assert vet("pixtral", "--granularity", "whole", "--level", "error").exit_code == 1


@pytest.mark.parametrize("style", ["text", "json", "sarif", "github"])
def test_every_format_ends_alike(style: str) -> None:
    assert vet("lfm3_vl", "--format", style).exit_code == 1
    assert vet("lfm3_vl", "--format", style, "--level", "error").exit_code == 0
    assert vet("llama", "--format", style).exit_code == 0
    assert vet("llama", "--format", style, "--level", "note").exit_code == 1


def test_a_file_stands_for_its_model() -> None:
    path = installed().root / LFM3
    assert vet(str(path)).stdout == vet("lfm3_vl").stdout
    assert vet("--format", "json", str(path), "lfm3-vl").stdout == vet("--format", "json", "lfm3_vl").stdout


def test_a_file_of_another_transformers(tmp_path: Path) -> None:
    root = copy_upstream(tmp_path / "edited")
    before = "        hidden_states = self.patch_embed(pixel_values)\n"
    edit_upstream(root, LFM3, before, f"        if pixel_values.isnan().any():\n            pass\n{before}")
    result = vet(str(root / LFM3), "--transformers", str(root), "--level", "error")
    assert result.exit_code == 0
    assert "`pixel_values.isnan().any()` decides the branch by the values of a tensor [data-branch]" in result.stdout
    assert "resolved by block granularity" in result.stdout
    assert result.stdout.startswith("edited/transformers/models/lfm3_vl/")
    whole = vet(str(root / LFM3), "--transformers", str(root), "--level", "error", "--granularity", "whole")
    assert whole.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing_like_it"], "has no model 'nothing_like_it'"),
        (["./absent.py"], "./absent.py doesn't exist. Name a modeling file"),
        ([__file__], "This imports upstreams.py, which lies beside it, by an absolute name"),
        (["llama", "--level", "fatal"], "'fatal' is not one of"),
    ],
)
def test_bad_input_is_an_error(arguments: list[str], message: str) -> None:
    result = vet(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_json() -> None:
    result = vet("lfm3_vl", "llama", "--format", "json")
    data = json.loads(result.stdout)
    assert data["models"] == ["lfm3_vl", "llama"]
    assert data["unresolved"] == sum(1 for finding in data["findings"] if finding["resolved_by"] is None) == 1
    left = next(finding for finding in data["findings"] if finding["resolved_by"] is None)
    assert (left["model"], left["kind"], left["level"], left["file"]) == ("lfm3_vl", "host-read", "warning", LFM3)
    assert left["classes"] == ["Lfm3VlVisionModel"]


def test_sarif() -> None:
    log = json.loads(vet("lfm3_vl", "--format", "sarif", "--level", "note").stdout)
    assert (log["version"], log["$schema"]) == ("2.1.0", "https://json.schemastore.org/sarif-2.1.0.json")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    assert run["results"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        assert not physical["artifactLocation"]["uri"].startswith("/")
        assert physical["region"]["startLine"] >= 1
        assert physical["region"]["startColumn"] >= 1
    left = [result for result in run["results"] if "suppressions" not in result]
    assert {result["ruleId"] for result in left} >= {"host-read"}
    resolved = [result["suppressions"][0] for result in run["results"] if "suppressions" in result]
    assert {"kind": "external", "justification": "resolved by packed-attention"} in resolved


def test_github() -> None:
    result = vet("lfm3_vl", "--format", "github", "--level", "note")
    lines = result.stdout.splitlines()
    assert len(lines) == len(unresolved(findings(facts("lfm3_vl"))))
    for line in lines:
        assert re.fullmatch(r"::(error|warning|notice) file=[^,:]+,line=\d+,col=\d+,title=vgen%3A [a-z-]+::.+", line)
    assert any(line.startswith(f"::warning file={LFM3},line=") for line in lines)


def test_classes_that_share_a_place_share_a_finding() -> None:
    for model in ("lfm3_vl", "mixtral"):
        found = findings(facts(model))
        assert len({(finding.span, finding.kind, finding.message) for finding in found}) == len(found)
        assert list(found) == sorted(found, key=lambda finding: (finding.span, finding.kind, finding.message))


def test_a_layer_s_number_counts_where_layers_are_regions() -> None:
    def levels(granularity: Granularity) -> set[HazardLevel]:
        found = findings(facts("llama"), granularity)
        return {finding.level for finding in found if finding.kind is HazardKind.LAYER_NUMBER}

    assert levels(Granularity.AUTO) == {HazardLevel.NOTE}
    assert levels(Granularity.BLOCK) == {HazardLevel.WARNING}


def test_what_lies_between_blocks_is_resolved_by_them() -> None:
    whole = unresolved(at_least(findings(facts("pixtral"), Granularity.WHOLE), HazardLevel.ERROR))
    assert [finding.kind for finding in whole] == [HazardKind.DATA_BRANCH]
    auto = at_least(findings(facts("pixtral")), HazardLevel.ERROR)
    assert [finding.resolved_by for finding in auto] == ["block granularity"]


def test_without_a_name_every_built_package_is_looked_at() -> None:
    result = vet()
    assert result.exit_code in (0, 1)
    assert {"llama", "qwen2", "internvl", "qwen2_5_vl"} <= {
        line.partition(":")[0] for line in result.stdout.splitlines() if "unresolved" in line
    }
