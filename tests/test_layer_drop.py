"""Layers that are left out at random in training: every such loop is found, and each layer is a graph where the stack can't be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import built
import pytest
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.layer_drop import LayerDrop, find
from vgen.codegen.analyze.model import analyze
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.facts import Ref
from vgen.codegen.plan import BY_LAYER, Granularity, Plan, Region
from vgen.codegen.planning import make_plan
from vgen.codegen.source import Source, folder, installed

M2M = "transformers/models/m2m_100/modeling_m2m_100.py"
DRAWN = re.compile(r"^ {12,}(layerdrop_prob|dropout_probability) = .*(rand|random|uniform)\(", re.M)


def choice_of(source: Source, file: str, name: str) -> LayerDrop | None:
    return find(Trees(source).method(Ref(file=file, name=name), "forward"))


def plan_of(model: str, source: Source | None = None, granularity: Granularity = Granularity.AUTO) -> Plan:
    return make_plan(analyze(source or installed(), model), granularity)


def test_every_loop_is_found() -> None:
    source, count = installed(), 0
    trees = Trees(source)
    for model in source.models():
        file = source.modeling_file(model)
        for definition in file.definitions.values() if DRAWN.search(file.text) else ():
            lines = "".join(f"{line}\n" for line in file.lines[definition.first_line - 1 : definition.last_line])
            if definition.is_class and DRAWN.search(lines):
                found = find(trees.method(Ref(file=file.rel, name=definition.name), "forward"))
                assert found is not None, f"{file.rel}: {definition.name}"
                assert found.conditions[0] == "self.training"
                count += 1
    assert count > 60


@pytest.mark.parametrize(
    ("model", "name", "conditions"),
    [
        ("m2m_100", "M2M100Encoder", ("self.training", "self.layerdrop > 0.0")),
        ("nllb_moe", "NllbMoeDecoder", ("self.training", "self.layerdrop > 0.0")),
        ("wavlm", "WavLMEncoder", ("self.training", "self.config.layerdrop > 0.0")),
        ("wavlm", "WavLMAdapter", ("self.training",)),
        ("vits", "VitsEncoder", ("self.training",)),
        ("musicgen", "MusicgenDecoder", ("self.training",)),
    ],
)
def test_when_a_choice_is_made(model: str, name: str, conditions: tuple[str, ...]) -> None:
    source = installed()
    found = choice_of(source, source.modeling_file(model).rel, name)
    assert found is not None
    assert (found.lists, found.conditions) == (("layers",), conditions)


BRANCH = """            if self.training and self.layerdrop > 0.0:
                dropout_probability = torch.rand([])
                if dropout_probability < self.layerdrop:
                    continue
"""
SPELLINGS = {
    "in one test": "            if self.training and random.random() < self.layerdrop:\n                continue\n",
    "an expression": "            skip = torch.rand([]) < self.layerdrop if self.training else False\n"
    "            if skip:\n                continue\n",
    "negated": "            kept = not self.training or np.random.uniform() >= self.layerdrop\n"
    "            if not kept:\n                continue\n",
    "elif": "            if not self.training:\n                pass\n"
    "            elif torch.empty(()).uniform_() < self.layerdrop:\n                continue\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_are_found(spelling: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", M2M, BRANCH, SPELLINGS[spelling])
    found = choice_of(folder(tmp_path / "upstream"), M2M, "M2M100Decoder")
    assert found is not None
    assert (found.lists, found.conditions) == (("layers",), ("self.training",))


OTHERS = {
    "not at random": BRANCH.replace("torch.rand([])", "hidden_states.mean()"),
    "in eval mode too": BRANCH.replace("self.training and ", ""),
    "before the loop": "            if self.training and noise > self.layerdrop:\n                continue\n",
    "no branch": "            hidden_states = hidden_states + torch.rand([]) * (1.0 if self.training else 0.0)\n",
}
"""What makes no such choice."""


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_choice_between_layers_is_left(other: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", M2M, BRANCH, OTHERS[other])
    source = folder(tmp_path / "upstream")
    assert choice_of(source, M2M, "M2M100Decoder") is None
    chosen = {region.ref.name for region in plan_of("m2m_100", source).regions if region.by_layer is not None}
    assert chosen == {"M2M100Encoder"}


def _region(plan: Plan, name: str) -> Region:
    return next(region for region in plan.regions if region.ref.name == name)


def test_layers_are_regions_in_training_and_resolve_the_hazard() -> None:
    plan = plan_of("m2m_100")
    decoder, layer = _region(plan, "M2M100Decoder"), _region(plan, "M2M100DecoderLayer")
    assert decoder.by_layer is not None
    assert decoder.by_layer.condition == "self.training and self.layerdrop > 0.0"
    assert decoder.cut == "whole, by layer in training"
    assert layer.only_in_training
    assert layer.tag == "m2m_100.decoder.block"
    branches = [hazard for hazard in plan.hazards if hazard.resolved_by == BY_LAYER]
    assert {hazard.owner.name for hazard in branches} == {"M2M100Encoder", "M2M100Decoder"}


def test_the_condition_is_that_of_the_stack_inside() -> None:
    wavlm, bert = _region(plan_of("wavlm"), "WavLMModel"), _region(plan_of("wav2vec2_bert"), "Wav2Vec2BertModel")
    for region in (wavlm, bert):
        assert region.by_layer is not None
        # The adapter, which not every instance has, isn't asked.
        assert region.by_layer.condition == "self.encoder.training and self.encoder.config.layerdrop > 0.0"


def test_a_granularity_that_was_asked_for_has_the_last_word() -> None:
    for granularity in (Granularity.WHOLE, Granularity.BLOCK):
        assert not any(
            region.by_layer or region.only_in_training for region in plan_of("m2m_100", None, granularity).regions
        )


def _set_rate(model: Any, rate: float) -> None:
    for part in model.modules():
        for holder in (part, getattr(part, "config", None)):
            for name in list(vars(holder)) if holder is not None else ():
                if "layerdrop" in name:
                    setattr(holder, name, rate)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("marian", "MarianModel"),
        ("speech_to_text", "Speech2TextModel"),
        ("xglm", "XGLMModel"),
        ("musicgen", "MusicgenForCausalLM"),
    ],
)
def test_values_and_gradients_are_upstreams(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    result = "logits" if "For" in name else "last_hidden_state"
    for model in (upstream, generated):
        _set_rate(model, 0.3)
    for seed in range(4):
        built.require_equal_steps(upstream, generated, made.inputs, result=result, seed=seed)
    counted = runtime.counters()
    assert counted
    assert all(tag.endswith(".block") for tag in counted)
    assert all(count.calls > count.graphs > 0 and not count.fallbacks for count in counted.values())


@pytest.mark.parametrize(("package", "name"), [("marian", "MarianModel"), ("xglm", "XGLMModel")])
def test_without_a_rate_and_in_eval_mode_the_whole_is_one_graph(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    for model in (upstream, generated):
        _set_rate(model, 0.0)
    built.require_equal_steps(upstream, generated, made.inputs)
    for model in (upstream, generated):
        _set_rate(model, 0.3)
        model.eval()
    built.require_equal_steps(upstream, generated, made.inputs)
    counted = runtime.counters()
    assert not any(tag.endswith(".block") for tag in counted)
    assert all(count.graphs == 2 and not count.fallbacks for count in counted.values())


def test_a_clamp_in_a_layer_is_a_choice_in_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("bart", "BartModel", tmp_path, monkeypatch)
    upstream, generated = upstream.half(), generated.half()
    for rate in (0.3, 0.0):
        for model in (upstream, generated):
            _set_rate(model, rate)
        built.require_equal_steps(upstream, generated, made.inputs)
    counted = runtime.counters()
    assert {"bart.encoder", "bart.encoder.block"} <= counted.keys()
    assert not any(count.fallbacks for count in counted.values())
