"""Where upstream's code branches on sizes: limits of the config are variants, and a graph for one size isn't compiled again."""

from __future__ import annotations

import sys
from pathlib import Path

import built
import pytest
import tiny
import torch
import transformers
from conftest import run_vgen
from transformers import CONFIG_MAPPING

import vgen.runtime as runtime

SLIDING = {"gemma3_text": ("gemma3", "Gemma3ForCausalLM"), "mistral": ("mistral", "MistralForCausalLM")}


def counted(tag: str) -> tuple[int, int]:
    count = runtime.counters()[tag]
    assert not count.fallbacks
    return count.compiles, count.variants


@torch.no_grad()
@pytest.mark.parametrize("model_type", SLIDING)
def test_each_side_of_a_window_is_a_variant(model_type: str) -> None:
    package, name = SLIDING[model_type]
    config = CONFIG_MAPPING[model_type](**tiny.TEXT, head_dim=16, sliding_window=8)
    torch.manual_seed(0)
    upstream = getattr(transformers, name)(config).eval()
    with runtime.options(backend="eager"):
        generated = tiny.generated_class(package, name=name)(config).eval()
    generated.load_state_dict(upstream.state_dict())
    tag = f"{package}.decoder"
    for length, expected in ((9, 1), (17, 1), (5, 2), (4, 2), (33, 2)):
        ids = tiny.text(2, length)
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        assert torch.equal(generated(ids, attention_mask=mask).logits, upstream(ids, attention_mask=mask).logits)
        assert counted(tag) == (expected, expected), length
    # A cache that fills up on the way.
    arguments = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "disable_compile": True}
    for length in (5, 4):
        ids = tiny.text(2, length)
        assert torch.equal(generated.generate(ids, **arguments), upstream.generate(ids, **arguments))
        assert len(set(counted(tag))) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["BambaForCausalLM", "Mamba2ForCausalLM"])
def test_chunks_of_a_state_space_layer_are_variants(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = name.removesuffix("ForCausalLM").lower()
    folder = f"chunks_{model}"
    assert run_vgen("build", model, "--out", folder, cwd=tmp_path).returncode == 0
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    from vgen.verify.making import make_tiny

    made = make_tiny(getattr(transformers, name))
    chunk = getattr(made.config, "mamba_chunk_size", None) or made.config.chunk_size
    with runtime.options(backend="eager"):
        generated = tiny.generated_class(model, folder, name)(made.config).eval()
    generated.load_state_dict(made.model.state_dict())
    for length, expected in (
        (chunk + 1, 1),
        (3 * chunk + 2, 1),
        (chunk - 2, 2),
        (chunk - 1, 2),
        (3 * chunk, 3),
        (2 * chunk, 3),
    ):
        ids = tiny.text(2, length)
        ours, theirs = generated(ids, use_cache=False), made.model(ids, use_cache=False)
        assert torch.equal(ours.logits, theirs.logits)
        assert counted(f"{model}.decoder") == (expected, expected), length


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["internvl_vision", "vit"])
def test_the_config_s_own_image_size_is_a_variant(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"internvl_vision": "internvl"}.get(model_type, model_type)
    folder = f"own_size_{package}"
    assert run_vgen("build", package, "--out", folder, cwd=tmp_path).returncode == 0
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    config = CONFIG_MAPPING[model_type](
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
    )
    name = {"internvl_vision": "InternVLVisionModel", "vit": "ViTModel"}[model_type]
    torch.manual_seed(0)
    upstream = getattr(transformers, name)(config).eval()
    with runtime.options(backend="eager", compile_mm_encoder=True):
        generated = tiny.generated_class(package, folder, name)(config).eval()
    generated.load_state_dict(upstream.state_dict())
    more = {"interpolate_pos_encoding": True} if model_type == "vit" else {}
    for size, expected in (((28, 28), 1), ((56, 56), 2), ((42, 56), 2), ((28, 28), 2)):
        pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        ours, theirs = generated(pixels, **more), upstream(pixels, **more)
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
        assert counted(f"{package}.encoder") == (expected, expected), size


@torch.no_grad()
@pytest.mark.parametrize(
    ("package", "name", "output", "compiles"),
    [
        ("depth_anything", "DepthAnythingForDepthEstimation", "predicted_depth", 2),
        ("vitdet", "VitDetModel", "last_hidden_state", 4),
        # Windows at several resolutions: each size. At one resolution: one graph.
        ("swin", "SwinModel", "last_hidden_state", 5),
        ("swinv2", "Swinv2Model", "last_hidden_state", 5),
        ("swin2sr", "Swin2SRModel", "last_hidden_state", 1),
    ],
)
def test_image_sizes_that_parts_compare_or_are_given_as_numbers_are_variants(
    package: str, name: str, output: str, compiles: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    upstream, generated = upstream.eval(), generated.eval()
    patch = made.inputs["pixel_values"].shape[-1] // 4
    for height, width in ((4, 4), (4, 8), (8, 4), (8, 12), (12, 8), (4, 4)):
        pixels = torch.randn(2, 3, height * patch, width * patch, generator=torch.Generator().manual_seed(1))
        assert torch.equal(generated(pixels)[output], upstream(pixels)[output])
    (count,) = (count for tag, count in runtime.counters().items() if ".encoder" in tag)
    assert not count.fallbacks
    assert (count.compiles, count.variants) == (compiles, compiles)


@torch.no_grad()
@pytest.mark.parametrize("model", ["canine", "funnel"])
def test_a_graph_for_one_length_is_left_alone_by_others(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"one_length_{model}"
    assert run_vgen("build", model, "--out", folder, cwd=tmp_path).returncode == 0
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    from vgen.verify.making import make_tiny

    name = f"{model.capitalize()}Model"
    made = make_tiny(getattr(transformers, name))
    with runtime.options(backend="eager"):
        generated = tiny.generated_class(model, folder, name)(made.config).eval()
    generated.load_state_dict(made.model.state_dict())
    for length in (12, 20, 9, 12):
        ids = tiny.text(2, length)
        ours, theirs = generated(ids), made.model(ids)
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    (count,) = runtime.counters().values()
    assert (count.calls, count.compiles, count.variants) == (4, 1, 1)
    ((reason, times),) = count.fallbacks.items()
    assert "holds for one input_ids.shape[1]" in reason
    assert times == 2
