"""The fingerprint notices everything that a forward could read, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaModel, LlamaRMSNorm

from vgen.runtime.fingerprint import Fingerprint, UnsuitableError


def make(**changes: Any) -> LlamaModel:
    from transformers import LlamaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(**sizes | {"num_key_value_heads": 2, "vocab_size": 64} | changes)).eval()


def half(model: Any) -> None:
    model.layers[1].mlp.up_proj.weight.data = model.layers[1].mlp.up_proj.weight.data.half()


class OtherNorm(LlamaRMSNorm):
    pass


CHANGES: dict[str, Callable[[Any], object]] = {
    "a plain attribute": lambda m: setattr(m.layers[0].self_attn, "scaling", 0.5),
    "an attribute of a norm": lambda m: setattr(m.norm, "variance_epsilon", 1.0),
    "a config field": lambda m: setattr(m.config, "output_hidden_states", True),
    "a nested config field": lambda m: m.config.rope_parameters.update(rope_theta=2.0),
    "train": lambda m: m.train(),
    "train in a layer": lambda m: m.layers[1].mlp.train(),
    "half": lambda m: m.half(),
    "half in one parameter, by data": half,
    "a longer weight": lambda m: setattr(m.layers[0].mlp.up_proj, "weight", nn.Parameter(torch.zeros(49, 32))),
    "a bias": lambda m: setattr(m.layers[0].mlp.up_proj, "bias", nn.Parameter(torch.zeros(48))),
    "a replaced layer": lambda m: setattr(m.layers[0], "mlp", nn.Identity()),
    "a layer less": lambda m: m.layers.__delitem__(1),
    "tied weights": lambda m: setattr(m.layers[0].mlp.up_proj, "weight", m.layers[1].mlp.up_proj.weight),
    "a class assigned": lambda m: setattr(m.layers[0].input_layernorm, "__class__", OtherNorm),
    "attention": lambda m: m.set_attn_implementation("eager"),
}
UNSUITABLE: dict[str, Callable[[Any], object]] = {
    "hook": lambda m: m.layers[1].register_forward_hook(lambda *_: None),
    "pre-hook": lambda m: m.layers[1].mlp.register_forward_pre_hook(lambda *_: None),
    "hook with keywords": lambda m: m.norm.register_forward_hook(lambda *_: None, with_kwargs=True),
    "backward hook": lambda m: m.norm.register_full_backward_hook(lambda *_: None),
    "own forward": lambda m: setattr(m.layers[0], "forward", m.layers[0].forward),
    "quantised": lambda m: setattr(m.layers[0], "mlp", torch.ao.nn.quantized.dynamic.Linear(32, 32)),
    "lambda": lambda m: setattr(m.layers[0].mlp, "act_fn_name", lambda x: x),
}


def test_two_models_of_one_config_are_equal_whatever_their_weights_and_names() -> None:
    one, other = make(), make(name_or_path="elsewhere", architectures=["Another"])
    other.norm.weight.data.fill_(3)
    assert Fingerprint(one).digest == Fingerprint(other).digest


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_is_noticed_in_this_process_and_in_another(change: str) -> None:
    model = make()
    before = Fingerprint(model)
    assert before.holds()
    CHANGES[change](model)
    assert not before.holds()
    assert Fingerprint(model).digest != before.digest


@pytest.mark.parametrize("change", UNSUITABLE, ids=str)
def test_what_no_artifact_can_serve_is_noticed_and_named(change: str) -> None:
    model = make()
    before = Fingerprint(model)
    UNSUITABLE[change](model)
    assert not before.holds()
    with pytest.raises(UnsuitableError):
        Fingerprint(model)


def test_hooks_elsewhere_and_new_weights_change_nothing() -> None:
    model = make()
    before = Fingerprint(model)
    nn.Linear(2, 2).register_forward_hook(lambda *_: None)
    with torch.no_grad():
        model.norm.weight.add_(1)
        model(input_ids=torch.zeros(1, 3, dtype=torch.long))
    assert before.holds()
