"""Roles: heads stay out of what is compiled, and parts that compete for a role are named."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from conftest import run_vgen

from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.model import analyze
from vgen.codegen.plan import Granularity, Plan
from vgen.codegen.planning import make_plan
from vgen.codegen.source import Source, installed


@cache
def source() -> Source:
    return installed()


def plan(model: str) -> Plan:
    return make_plan(analyze(source(), model), Granularity.AUTO)


@pytest.mark.parametrize(
    ("model", "decoder"),
    [
        ("llama4", "Llama4TextModel"),
        ("mllama", "MllamaTextModel"),
        ("kosmos2", "Kosmos2TextModel"),
        ("musicgen", "MusicgenModel"),
        ("moshi", "MoshiModel"),
        ("blip", "BlipTextModel"),
        ("csm", "CsmBackboneModel"),
        ("qwen3_omni_moe", "Qwen3OmniMoeTalkerModel"),
    ],
)
def test_a_language_modeling_head_is_in_no_region(model: str, decoder: str) -> None:
    """Transformers' own rules end at a class with a head in each of these."""
    regions, classes = plan(model).regions, Classes(source())
    assert decoder in {region.ref.name for region in regions}
    generating = {
        region.ref.name
        for region in regions
        if any(base.name == "GenerationMixin" for base in classes.mro(region.ref))
    }
    assert generating == set()


def test_parts_that_compete_for_the_decoder_are_named() -> None:
    (found,) = (note for _, note in analyze(source(), "moshi").notes if "several parts" in note)
    assert "decoder.model (MoshiModel), depth_decoder (MoshiDepthDecoder)" in found
    assert '`decoder = "depth_decoder"` in [tool.vgen.models.moshi] of pyproject.toml' in found


@pytest.mark.parametrize("model", ["qwen2_5_vl", "t5", "whisper", "musicgen", "qwen3_omni_moe", "blt", "rag"])
def test_where_every_decoder_is_compiled_nothing_competes(model: str) -> None:
    """Here or by the package of the model that it is."""
    assert [note for _, note in analyze(source(), model).notes if "several parts" in note] == []


def test_what_is_decided_is_what_is_compiled_and_vetted(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.vgen.models.moshi]\ndecoder = "depth_decoder"\n')
    done = run_vgen("explain", "moshi", cwd=tmp_path)
    assert "MoshiForConditionalGeneration.depth_decoder: decided in pyproject.toml" in " ".join(done.stdout.split())
    # The models without that part keep their own.
    assert "text decoder" in done.stdout
    assert "text encoder" not in done.stdout
    assert "position_idx" in run_vgen("vet", "moshi", cwd=tmp_path).stdout
    (tmp_path / "pyproject.toml").unlink()
    assert "position_idx" not in run_vgen("vet", "moshi", cwd=tmp_path).stdout
