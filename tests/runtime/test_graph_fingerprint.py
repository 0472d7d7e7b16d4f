"""What a recorded graph took from a module is looked at anew where something was written to the module, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaModel

from vgen.runtime.graph_fingerprint import GraphFingerprint

CHANGES: dict[str, Callable[[Any], object]] = {
    "train": lambda m: m.train(),
    "train in a layer": lambda m: m.layers[1].mlp.train(),
    "a hook": lambda m: m.layers[1].register_forward_hook(lambda *_: None),
    "a pre-hook": lambda m: m.norm.register_forward_pre_hook(lambda *_: None),
    "own forward": lambda m: setattr(m.layers[0], "forward", m.layers[0].forward),
    "a weight replaced": lambda m: setattr(m.norm, "weight", nn.Parameter(torch.ones(32))),
    "a weight moved": lambda m: setattr(m.norm.weight, "data", m.norm.weight.data.clone()),
    "a bias": lambda m: setattr(m.layers[0].mlp.up_proj, "bias", nn.Parameter(torch.zeros(48))),
    "a buffer replaced": lambda m: setattr(m.rotary_emb, "inv_freq", m.rotary_emb.inv_freq.clone()),
    "a layer less": lambda m: m.layers.__delitem__(1),
    "a replaced layer": lambda m: setattr(m.layers[0], "mlp", nn.Identity()),
    "another class": lambda m: setattr(m.norm, "__class__", type("OtherNorm", (type(m.norm),), {})),
    "a config field": lambda m: setattr(m.config, "output_hidden_states", True),
}


def make() -> LlamaModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaModel(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=64)).eval()


def write_the_same(model: Any) -> None:
    model.layers[0].self_attn.scaling = float(str(model.layers[0].self_attn.scaling))


@pytest.mark.parametrize("times", [0, 1, 9])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_whatever_was_written_before(change: str, times: int) -> None:
    model = make()
    fingerprint = GraphFingerprint(model)
    assert fingerprint.holds()
    for _ in range(times):
        write_the_same(model)
        assert fingerprint.holds()
    CHANGES[change](model)
    assert not fingerprint.holds()
    assert not fingerprint.holds()


@pytest.mark.parametrize("place", [modeling_llama, torch.nn.functional], ids=["its file", "PyTorch"])
def test_a_function_that_its_code_calls_is_exchanged(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = GraphFingerprint(make())
    assert fingerprint.holds()
    name = "apply_rotary_pos_emb" if place is modeling_llama else "linear"
    monkeypatch.setattr(place, name, lambda *_: None)
    assert not fingerprint.holds()


def test_what_was_put_back_holds() -> None:
    model = make()
    fingerprint = GraphFingerprint(model)
    assert fingerprint.holds()
    model.train()
    assert not fingerprint.holds()
    model.eval()
    assert fingerprint.holds()


def test_new_values_of_weights_hold() -> None:
    model = make()
    fingerprint = GraphFingerprint(model)
    with torch.no_grad():
        model.norm.weight.add_(1)
    assert fingerprint.holds()
