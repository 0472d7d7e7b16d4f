"""What tiny configs keep of their classes' own rules, and what is left to the classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

from vgen.verify.inputs import Request, make_inputs
from vgen.verify.making import make_tiny
from vgen.verify.sensitivity import depends_on
from vgen.verify.tiny import set_missed, tiny_config
from vgen.verify.tiny.fields import MISSING


def test_layers_that_a_class_counts_several_times_are_counted_once_by_us() -> None:
    config = tiny_config(CONFIG_MAPPING["hrm_text"])
    assert config.num_layers_per_stack == 2
    assert config.num_hidden_layers == 2 * config.H_cycles * (config.L_cycles + 1)


def test_a_class_that_takes_its_layers_as_given_gets_two() -> None:
    assert tiny_config(CONFIG_MAPPING["llama"]).num_hidden_layers == 2


@pytest.mark.parametrize("model", ["qwen3_moe", "kolibri1"])
def test_a_field_of_two_names_is_made_smaller(model: str) -> None:
    config = CONFIG_MAPPING[model]()
    assert config.num_local_experts == config.num_experts > 100
    assert tiny_config(config).num_local_experts == 4


def test_sequences_are_lists_as_in_a_checkpoint() -> None:
    config = tiny_config(CONFIG_MAPPING["vitmatte"])
    assert isinstance(config.fusion_hidden_sizes, list)
    assert isinstance(config.convstream_hidden_sizes, list)


def test_an_index_before_those_of_a_list_stays_there() -> None:
    config = tiny_config(CONFIG_MAPPING["seggpt"])
    assert config.merge_index <= min(config.intermediate_hidden_state_indices)


def test_a_field_that_an_error_names_is_set_where_it_is_none() -> None:
    config = tiny_config(CONFIG_MAPPING["llama"])
    window = ValueError("Could not find a `sliding_window` argument in the config, or it is not set")
    assert not set_missed(config, window), "the class has no such field"
    assert not set_missed(config, ValueError("something else"))
    config = tiny_config(CONFIG_MAPPING["step3p5"])
    assert config.sliding_window is None
    assert set_missed(config, window)
    assert config.sliding_window == MISSING["sliding_window"]
    assert not set_missed(config, window), "it is set now"


@pytest.mark.parametrize(
    "name",
    [
        "HrmTextForCausalLM",
        "VitMatteForImageMatting",
        "PPOCRV5ServerDetForObjectDetection",
        "T5Gemma2Encoder",
    ],
)
def test_models_whose_classes_have_such_rules_run(name: str) -> None:
    cls: Any = getattr(transformers, name, None)
    if cls is None:
        cls = transformers.models.t5gemma2.modeling_t5gemma2.T5Gemma2Encoder
    tiny = make_tiny(cls)
    with torch.no_grad():
        found = tiny.model(**tiny.inputs)
    assert next(value for value in found.values() if isinstance(value, torch.Tensor)).isfinite().all()


@pytest.mark.parametrize(
    "name", ["EfficientNetModel", "MobileViTModel", "SamModel", "PPOCRV5MobileDetForObjectDetection"]
)
def test_outputs_that_would_be_zeros_get_larger_weights(name: str) -> None:
    cls = getattr(transformers, name)
    tiny = make_tiny(cls)
    other = make_inputs(tiny.model, Request(seed=1))
    assert tiny.config.initializer_range > 0.02
    assert depends_on(tiny.model, tiny.inputs, other)
    usual = cls(type(tiny.config).from_dict(tiny.config.to_dict() | {"initializer_range": 0.02})).eval()
    if name != "SamModel":  # its parts have ranges of their own
        assert not depends_on(usual, tiny.inputs, other)


def test_other_models_keep_the_weights_of_their_configs() -> None:
    assert make_tiny(transformers.LlamaModel).config.initializer_range == transformers.LlamaConfig().initializer_range


def test_a_mask_of_another_length_than_the_model_attends_to_is_left_out() -> None:
    tiny = make_tiny(transformers.ASTModel)  # it attends to patches of a spectrogram
    assert "attention_mask" not in tiny.inputs
    assert "attention_mask" in make_tiny(transformers.ParakeetEncoder).inputs
