"""Tiny configs and inputs: what the fields satisfy, and that models of each kind run on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

from vgen.verify.entries import choose
from vgen.verify.inputs import CannotMakeInputsError, Request, abilities, make_inputs
from vgen.verify.making import make_tiny
from vgen.verify.tiny import CannotShrinkError, tiny_config
from vgen.verify.tiny.relations import sections

ENTRIES = {
    "llama": "LlamaForCausalLM",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "mamba2": "Mamba2ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "t5": "T5ForConditionalGeneration",
    "whisper": "WhisperForConditionalGeneration",
    "bert": "BertModel",
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "gemma3": "Gemma3ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "wav2vec2": "Wav2Vec2Model",
    "rt_detr": "RTDetrModel",
    "swin": "SwinModel",
}
WITH_IMAGES = ("qwen2_vl", "qwen2_5_vl", "gemma3", "llama4", "clip", "siglip", "rt_detr", "swin")
SHRINKABLE = sorted(ENTRIES)


def _class(model_type: str) -> Any:
    return getattr(transformers, ENTRIES[model_type])


def _nested(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    parts = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(each for part in parts for each in _nested(part))]


@pytest.mark.parametrize(
    "name",
    [
        # Only linear attention by default; kinds of layers that come round again.
        "GraniteMoeHybridForCausalLM",
        "RecurrentGemmaForCausalLM",
        # Fields that are None by default and that the model divides by.
        "NemotronForCausalLM",
        "DbrxForCausalLM",
        "LwDetrModel",
        "Qwen4ExpForCausalLM",
        # Stages: a factor on all widths, layers counted through all stages.
        "EfficientNetModel",
        "CvtModel",
        "MaskFormerModel",
        "DepthProModel",
        # Fields that the model reads and the config's class doesn't declare, flags that only some configs have.
        "MoonshineStreamingForConditionalGeneration",
        "BltForCausalLM",
        "CHMv2ForDepthEstimation",
        # Widths that no field tells.
        "GraniteSpeech5ForCTC",
        "MimiDecoderModel",
        "FunAsrNanoForConditionalGeneration",
        "VoxtralRealtimeForConditionalGeneration",
        "NeuCodecModel",
        # Inputs that are neither text nor media.
        "DecisionTransformerModel",
        "PerceiverModel",
        # A mask of text and images, places for images in the text.
        "IdeficsForVisionText2Text",
        "Kosmos2ForConditionalGeneration",
    ],
)
def test_a_model_that_asks_for_more_runs(name: str) -> None:
    tiny = make_tiny(getattr(transformers, name))
    assert sum(each.numel() for each in tiny.model.parameters()) < 20_000_000
    with torch.no_grad():
        assert torch.isfinite(tiny.model(**tiny.inputs)[0]).all()


@pytest.mark.parametrize(
    "name",
    [
        # Tiles of each image, and a list of images for each sample.
        "LlavaNextForConditionalGeneration",
        "ColModernVBertForRetrieval",
        # What only the base model names, or the method that makes the features.
        "VideoLlama3ForConditionalGeneration",
        "MiniCPMV4_6ForConditionalGeneration",
        # An encoder that the config does without, patches wider than a field tells.
        "Gemma4UnifiedForConditionalGeneration",
        "MuseGlimmerForConditionalGeneration",
        # Layers' outputs side by side, frames in place of images, a mask of images.
        "MllamaForConditionalGeneration",
        "InstructBlipVideoForConditionalGeneration",
        "GraniteDoclingForConditionalGeneration",
        "PI0ForConditionalGeneration",
    ],
)
def test_images_are_shown_where_a_model_takes_them(name: str) -> None:
    tiny = make_tiny(getattr(transformers, name))
    assert "pixel_values" in tiny.inputs


@pytest.mark.parametrize("model_type", ENTRIES)
def test_a_model_of_each_kind_runs(model_type: str) -> None:
    """It is small, its outputs are numbers, and they depend on the inputs."""
    tiny = make_tiny(_class(model_type))
    assert sum(each.numel() for each in tiny.model.parameters()) < 1_000_000
    other = make_inputs(tiny.model, Request(seed=1))
    assert {name: value.shape for name, value in other.items()} == {n: v.shape for n, v in tiny.inputs.items()}
    with torch.no_grad():
        first, second = (tiny.model(**each)[0] for each in (tiny.inputs, other))
    assert torch.isfinite(first).all()
    assert not torch.equal(first, second)
    if model_type in WITH_IMAGES:
        assert "images" in abilities(tiny.model)
        assert "pixel_values" in tiny.inputs


@given(model_type=st.sampled_from(SHRINKABLE), layers=st.integers(1, 3))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_same_arguments_give_the_same_config(model_type: str, layers: int) -> None:
    config_class = CONFIG_MAPPING[model_type]
    first, second = (tiny_config(config_class, layers=layers) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    assert tiny_config(config_class(), layers=layers).to_dict() == first.to_dict()


@given(model_type=st.sampled_from(SHRINKABLE))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_token_ids_are_distinct_and_inside_the_vocabulary(model_type: str) -> None:
    before, after = CONFIG_MAPPING[model_type](), tiny_config(CONFIG_MAPPING[model_type])
    names = [
        name
        for name in vars(before)
        if name.endswith(("token_id", "token_index")) and isinstance(vars(before)[name], int)
    ]
    size = after.get_text_config().vocab_size if names else 0
    ids = {name: vars(after)[name] for name in names if vars(before)[name] >= 0}
    assert all(each < size for each in ids.values())
    assert len(set(ids.values())) == len({vars(before)[name] for name in ids})


@given(model_type=st.sampled_from([name for name in SHRINKABLE if name not in ("swin", "rt_detr", "mamba2")]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_heads_divide(model_type: str) -> None:
    for config in _nested(tiny_config(CONFIG_MAPPING[model_type])):
        held = vars(config)
        heads, width = held.get("num_attention_heads"), held.get("hidden_size")
        if isinstance(heads, int) and isinstance(width, int):
            assert width % heads == 0
        if isinstance(heads, int) and isinstance(key_value := held.get("num_key_value_heads"), int):
            assert heads % key_value == 0


def test_every_kind_of_layer_stays() -> None:
    before, after = (make(CONFIG_MAPPING["gemma3_text"]) for make in (lambda cls: cls(), tiny_config))
    assert set(before.layer_types) == set(after.layer_types)
    assert len(after.layer_types) == after.num_hidden_layers == 2


def test_a_ratio_of_heads_stays_one() -> None:
    grouped, tied = tiny_config(CONFIG_MAPPING["mixtral"]), tiny_config(CONFIG_MAPPING["llama"])
    assert grouped.num_key_value_heads < grouped.num_attention_heads
    assert tied.num_key_value_heads == tied.num_attention_heads


def test_a_state_space_model_stays_consistent() -> None:
    config = tiny_config(CONFIG_MAPPING["mamba2"])
    assert config.expand * config.hidden_size == config.num_heads * config.head_dim


@given(parts=st.lists(st.integers(1, 64), min_size=3, max_size=3), half=st.integers(3, 64))
def test_sections_fill_the_half_head(parts: list[int], half: int) -> None:
    made = sections(parts, half)
    assert sum(made) == half
    assert min(made) >= 1


def test_what_cannot_be_shrunk_says_why() -> None:
    class Stubborn(transformers.LlamaConfig):  # type: ignore[misc]
        model_type = "stubborn"

        def __post_init__(self, **kwargs: Any) -> None:
            super().__post_init__(**kwargs)
            if self.hidden_size != 4096:
                raise ValueError("4096 or nothing")

    with pytest.raises(CannotShrinkError, match="4096 or nothing"):
        tiny_config(Stubborn)


def test_padding_embeds_and_images_as_asked() -> None:
    model = make_tiny(_class("qwen2_vl")).model
    left = make_inputs(model, Request(padding="left", images=0))
    assert left["attention_mask"].shape == left["input_ids"].shape == (2, 11)
    assert left["attention_mask"][0].all()
    assert not left["attention_mask"][1, 0]
    assert left["attention_mask"][1, -1]
    right = make_inputs(model, Request(padding="right", images=0))
    assert not right["attention_mask"][1, -1]
    embeds = make_inputs(model, Request(embeds=True, images=0))
    assert "input_ids" not in embeds
    sized = make_inputs(model, Request(images=2, image_sizes=((28, 56), (84, 28))))
    assert sized["image_grid_thw"].tolist()[:2] == [[1, 2, 4], [1, 6, 2]]
    assert len(sized["image_grid_thw"]) == 4
    assert torch.equal(left["input_ids"], make_inputs(model, Request(padding="left", images=0))["input_ids"])


def test_inputs_that_a_model_does_not_take_say_so() -> None:
    model = make_tiny(_class("bert")).model
    assert "images" not in abilities(model)
    with pytest.raises(CannotMakeInputsError, match="labels"):
        make_inputs(model, Request(labels=True))


def test_each_model_type_has_an_entry() -> None:
    names = (
        "CLIPModel",
        "CLIPTextModel",
        "CLIPVisionModel",
        "CLIPVisionModelWithProjection",
        "CLIPForImageClassification",
    )
    entries = choose({name: getattr(transformers, name) for name in names})
    assert {model_type: cls.__name__ for model_type, cls in entries.items()} == {
        "clip": "CLIPModel",
        "clip_text_model": "CLIPTextModel",
        "clip_vision_model": "CLIPVisionModel",
    }
    assert modeling_auto.MODEL_MAPPING_NAMES["clip"] == "CLIPModel"
