"""What is generated computes, loads and saves what upstream does, for real Transformers models with random weights."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

import vgen.runtime as runtime

MODELS = ("qwen2_5_vl", "internvl", "qwen2", "llama", "mixtral")
MULTIMODAL = ("qwen2_5_vl", "internvl")
CLOSE = {"rtol": 0.0, "atol": 1e-6}
"""For gradients where upstream's own attention picks another kernel under tracing than in eager: see `tiny.config`."""


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def package(model: str, request: pytest.FixtureRequest) -> str:
    """Where the model's package is: committed, or built for these tests."""
    return str(request.getfixturevalue("compiled")) if model == "mixtral" else "vgen.generated"


@pytest.fixture(scope="module")
def shared(model: str, package: str) -> tuple[Any, Any]:
    """Upstream's model and the generated one, everything compiled that can be, bit-equal in every mode."""
    return tiny.pair(model, package, changes={"kv_heads": 4}, **encoder(model))


@pytest.fixture
def pair(shared: tuple[Any, Any]) -> tuple[Any, Any]:
    """The shared pair as if it hadn't run: Qwen2.5-VL remembers where its last prompt ended."""
    for each in shared:
        each.eval().zero_grad(set_to_none=True)
        if hasattr(each.model, "rope_deltas"):
            each.model.rope_deltas = None
    return shared


def encoder(model: str) -> dict[str, bool]:
    return {"compile_mm_encoder": model in MULTIMODAL}


def assert_compiled(model: str, *, with_encoder: bool = True) -> None:
    """Every region of the model ran and none fell back: what was compared was compiled."""
    decoder = {"internvl": "qwen2"}.get(model, model)
    encoders = {f"{model}.encoder"} if with_encoder and model in MULTIMODAL else set()
    counted = runtime.counters()
    assert set(counted) == {f"{decoder}.decoder"} | encoders
    assert all(each.calls for each in counted.values())
    assert tiny.fallbacks() == {}


def assert_same_state(first: PreTrainedModel, second: PreTrainedModel) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def test_forward_is_bit_equal(model: str, pair: tuple[Any, Any]) -> None:
    upstream, generated = pair
    inputs = tiny.prompt(model)
    expected, found = upstream(**inputs), generated(**inputs)
    assert torch.equal(expected.logits, found.logits)
    assert list(expected) == list(found)
    assert_compiled(model)


@torch.no_grad()
@pytest.mark.parametrize("images", [[(1, 4, 4)], [(1, 8, 6), (1, 4, 4)], []], ids=["one", "two", "none"])
@pytest.mark.parametrize("videos", [[(2, 4, 6)], [(1, 4, 4), (3, 4, 4)], []], ids=["one", "two", "none"])
def test_images_and_videos_are_bit_equal(
    images: list[tuple[int, int, int]], videos: list[tuple[int, int, int]], vision_pair: tuple[Any, Any]
) -> None:
    upstream, generated = vision_pair
    inputs = tiny.vision_prompt(images=images, videos=videos)
    assert torch.equal(upstream(**inputs).logits, generated(**inputs).logits)
    assert tiny.fallbacks() == {}


@pytest.fixture(scope="module")
def vision_pair() -> tuple[Any, Any]:
    return tiny.pair("qwen2_5_vl", compile_mm_encoder=True)


@torch.no_grad()
def test_several_prompts_with_images_are_bit_equal(vision_pair: tuple[Any, Any]) -> None:
    upstream, generated = vision_pair
    inputs = tiny.vision_prompt(images=[(1, 4, 6)], rows=3)
    assert torch.equal(upstream(**inputs).logits, generated(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_bit_equal(model: str, pair: tuple[Any, Any], side: str) -> None:
    upstream, generated = pair
    inputs = tiny.padded(model, side)
    expected, found = upstream(**inputs).logits, generated(**inputs).logits
    assert torch.equal(expected, found)
    unpadded = upstream(**{name: value for name, value in inputs.items() if name != "attention_mask"}).logits
    assert not torch.equal(expected, unpadded), "the mask matters"
    assert_compiled(model, with_encoder=False)


@torch.no_grad()
def test_decode_steps_by_hand(model: str, pair: tuple[Any, Any]) -> None:
    for expected, found in decode_steps(model, *pair):
        assert torch.equal(found, expected)
    assert_compiled(model, with_encoder=False)


def decode_steps(model: str, upstream: Any, generated: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The logits of both, for a padded prompt and three single tokens after it."""
    inputs = tiny.padded(model, "left")
    first, second = upstream(**inputs, use_cache=True), generated(**inputs, use_cache=True)
    yield first.logits, second.logits
    mask = inputs["attention_mask"]
    for step in range(3):
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        following = {"input_ids": tiny.text(2, 1, seed=step), "attention_mask": mask}
        first = upstream(**following, past_key_values=first.past_key_values)
        second = generated(**following, past_key_values=second.past_key_values)
        assert second.past_key_values.get_seq_length() == 14 + step
        yield first.logits, second.logits


def test_generate_gives_the_same_tokens(model: str, pair: tuple[Any, Any]) -> None:
    upstream, generated = pair
    inputs = tiny.prompt(model)
    expected = upstream.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert expected.shape[1] > inputs["input_ids"].shape[1]
    assert torch.equal(generated.generate(**inputs, max_new_tokens=8, do_sample=False), expected)
    assert_compiled(model)


def test_gradients_are_bit_equal(model: str, pair: tuple[Any, Any]) -> None:
    for name, expected, found in gradients(model, *pair):
        assert torch.equal(found, expected), name
    assert_compiled(model)


def gradients(model: str, upstream: Any, generated: Any) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """The gradients of both in training mode, by parameter."""
    inputs = tiny.prompt(model)
    for each in (upstream, generated):
        each.train()
        each(**inputs, labels=inputs["input_ids"]).loss.backward()
    found = []
    for (name, parameter), (_, other) in zip(upstream.named_parameters(), generated.named_parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None:
            found.append((name, parameter.grad, other.grad))
    assert len(found) > 10
    return found


@pytest.mark.parametrize("model", ["llama", "qwen2_5_vl"], indirect=True)
def test_grouped_key_value_heads(model: str, package: str) -> None:
    """Bit-equal in every step; gradients close, because under tracing upstream repeats keys and values for them."""
    upstream, generated = tiny.pair(model, package, changes={"kv_heads": 2}, **encoder(model))
    with torch.no_grad():
        for expected, found in decode_steps(model, upstream, generated):
            assert torch.equal(found, expected)
    for _, expected, found in gradients(model, upstream, generated):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert_compiled(model)


@torch.no_grad()
@pytest.mark.parametrize("model", ["qwen2_5_vl", "llama"], indirect=True)
def test_inductor_is_close(model: str, package: str) -> None:
    upstream, generated = tiny.pair(model, package, backend="inductor", **encoder(model))
    inputs = tiny.prompt(model)
    torch.testing.assert_close(generated(**inputs).logits, upstream(**inputs).logits, rtol=0.0, atol=1e-5)
    assert_compiled(model)


@torch.no_grad()
def test_with_compilation_off_it_is_upstream(model: str, package: str) -> None:
    upstream, generated = tiny.pair(model, package, compile=False, compile_mm_encoder=True)
    inputs = tiny.prompt(model)
    assert torch.equal(generated(**inputs).logits, upstream(**inputs).logits)
    expected = upstream.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(generated.generate(**inputs, max_new_tokens=4, do_sample=False), expected)
    assert sum(tiny.compiles().values()) == 0


@torch.no_grad()
@pytest.mark.parametrize("model", ["llama", "qwen2_5_vl"], indirect=True)
def test_inputs_of_every_kind_and_outputs_of_every_kind(pair: tuple[Any, Any]) -> None:
    """Embeddings in place of ids, tuples in place of dataclasses, hidden states recorded."""
    upstream, generated = pair
    ids = tiny.text(2, 7)
    embeddings = upstream.get_input_embeddings()(ids)
    assert torch.equal(generated(inputs_embeds=embeddings).logits, upstream(inputs_embeds=embeddings).logits)
    expected = upstream(ids, output_hidden_states=True).hidden_states
    found = generated(ids, output_hidden_states=True).hidden_states
    assert len(expected) == len(found) == 3
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    plain = generated(ids, return_dict=False, use_cache=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], upstream(ids, return_dict=False, use_cache=False)[0])
    assert tiny.fallbacks() == {}


def test_it_is_upstreams_class_to_everybody(pair: tuple[Any, Any]) -> None:
    upstream, generated = pair
    assert isinstance(generated, type(upstream))
    assert type(generated) is not type(upstream)
    assert type(generated).__name__ == type(upstream).__name__
    assert list(generated.state_dict()) == list(upstream.state_dict())
    for question in ("is_custom_code", "_can_set_experts_implementation", "_can_set_attn_implementation"):
        assert getattr(generated, question)() is getattr(upstream, question)()
        for part, other in zip(generated.modules(), upstream.modules(), strict=True):
            assert isinstance(part, type(other))
            if isinstance(other, PreTrainedModel):
                assert getattr(part, question)() is getattr(other, question)(), (type(other), question)
    assert generated._no_split_modules == upstream._no_split_modules
    assert generated.can_generate()
    assert inspect.signature(type(generated).forward) == inspect.signature(type(upstream).forward)
    decoder, other = generated.get_decoder(), upstream.get_decoder()
    assert isinstance(decoder, runtime.Compiled)
    assert type(decoder).__name__ == type(other).__name__
    assert list(inspect.signature(type(decoder).forward).parameters) == list(
        inspect.signature(type(other).forward).parameters
    )


def test_equal_seeds_give_equal_weights(model: str, package: str) -> None:
    torch.manual_seed(7)
    expected = getattr(transformers, tiny.ENTRIES[model])(tiny.config(model))
    torch.manual_seed(7)
    assert_same_state(tiny.generated_class(model, package)(tiny.config(model)), expected)


@torch.no_grad()
def test_a_checkpoint_goes_there_and_back(model: str, pair: tuple[Any, Any], tmp_path: Path) -> None:
    upstream, generated = pair
    upstream_class, generated_class = type(upstream), type(generated)
    upstream.save_pretrained(tmp_path / "theirs")
    with runtime.options(backend="eager"):
        loaded, info = generated_class.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[problem], problem
    assert_same_state(loaded, upstream)
    inputs = tiny.prompt(model)
    assert torch.equal(loaded(**inputs).logits, upstream(**inputs).logits)

    loaded.save_pretrained(tmp_path / "ours")
    assert AutoConfig.from_pretrained(tmp_path / "ours").architectures == [tiny.ENTRIES[model]]
    back, info = upstream_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[problem], problem
    assert_same_state(back, upstream)
    theirs, ours = (tmp_path / name / "model.safetensors" for name in ("theirs", "ours"))
    assert theirs.read_bytes() == ours.read_bytes()


def test_load_picks_the_class(model: str, package: str, pair: tuple[Any, Any], tmp_path: Path) -> None:
    upstream, generated = pair
    upstream.save_pretrained(tmp_path)
    loaded = runtime.load(tmp_path, backend="eager", generated=package, **encoder(model))
    assert type(loaded) is type(generated)
    assert (loaded.vgen_options.backend, loaded.vgen_options.compile_mm_encoder) == ("eager", model in MULTIMODAL)
    assert_same_state(loaded, upstream)


@torch.no_grad()
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_works_by_itself(model: str, package: str, way: str) -> None:
    upstream, generated = tiny.pair(model, package)
    ids = tiny.text(1, 6)
    expected = upstream(ids).logits
    if way == "deepcopy":
        # With pickle as with upstream's models: once hidden states were recorded, their hooks can't be pickled.
        assert torch.equal(generated(ids).logits, expected)
    twin = copy.deepcopy(generated) if way == "deepcopy" else pickle.loads(pickle.dumps(generated))
    assert type(twin) is type(generated)
    assert twin.vgen_options == generated.vgen_options
    assert next(twin.parameters()).data_ptr() != next(generated.parameters()).data_ptr()
    runtime.reset_counters()
    assert torch.equal(twin(ids).logits, expected)
    assert sum(tiny.compiles().values()) == 1, "it compiles for itself"
    assert tiny.fallbacks() == {}
