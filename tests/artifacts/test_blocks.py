"""With a region for each layer, layers that agree share one artifact, and those that don't have their own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import run_vgen
from served import EagerCore

import vgen.runtime as runtime
from vgen.runtime import region
from vgen.runtime.building import building

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("blocks")
    models = ("siglip", "llama", "imagegpt", "bart")
    done = run_vgen("build", *models, "--granularity", "block", "--out", "block_models", cwd=root)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        yield lambda name: importlib.import_module(f"block_models.{name}")


def make(blocks: Any) -> tuple[Any, Any]:
    config = transformers.SiglipVisionConfig(image_size=32, patch_size=8, **SIZES)
    torch.manual_seed(0)
    upstream = transformers.SiglipVisionModel(config).eval()
    with runtime.options(compile_mm_encoder=True):
        generated = blocks("siglip").SiglipVisionModel(config).eval()
    generated.load_state_dict(upstream.state_dict())
    return upstream, generated


def test_equal_layers_share_one_artifact(blocks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    upstream, generated = make(blocks)
    with torch.no_grad(), building(store):
        expected = upstream(PIXELS).last_hidden_state
        torch.testing.assert_close(generated(PIXELS).last_hidden_state, expected)
    assert len(list(store.glob("*.vgenart"))) == 1, runtime.counters()
    monkeypatch.setenv("VGEN_STORE", str(store))
    monkeypatch.setattr(region, "CompiledCore", EagerCore)
    runtime.reset_counters()
    upstream, generated = make(blocks)
    with torch.no_grad():
        torch.testing.assert_close(generated(PIXELS).last_hidden_state, expected)
    (count,) = runtime.counters().values()
    assert (count.calls, count.loaded, count.compiles) == (3, 3, 0)
    # One that differs isn't served by what the others share.
    for model in (upstream, generated):
        (layers,) = (part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
        layers[1].mlp.fc1.weight.data.mul_(2)
        layers[1].layer_norm1.eps = 0.5
    runtime.reset_counters()
    with torch.no_grad():
        torch.testing.assert_close(generated(PIXELS).last_hidden_state, upstream(PIXELS).last_hidden_state)
    (count,) = runtime.counters().values()
    assert (count.calls, count.loaded, count.compiles) == (3, 2, 1)


def pair(upstream_class: Any, package: Any, config: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    upstream = upstream_class(config).eval()
    generated = getattr(package, upstream_class.__name__)(config).eval()
    generated.load_state_dict(upstream.state_dict())
    return upstream, generated


def served(
    run: Any, upstream_class: Any, package: Any, config: Any, store: Path, patch: pytest.MonkeyPatch
) -> tuple[int, Any]:
    """How many artifacts one model's layers built, which then serve another's, and what that one and upstream's computed."""
    with torch.no_grad(), building(store):
        run(pair(upstream_class, package, config)[1])
    patch.setenv("VGEN_STORE", str(store))
    patch.setenv("VGEN_ARTIFACTS", "require")
    patch.setattr(region, "CompiledCore", EagerCore)
    runtime.reset_counters()
    upstream, generated = pair(upstream_class, package, config)
    with torch.no_grad():
        results = run(generated), run(upstream)
    (count,) = runtime.counters().values()
    assert count.calls == count.loaded > 0
    return len(list(store.glob("*.vgenart"))), results


def test_layers_with_a_cache_share_one_for_the_prompt_and_one_for_a_token(
    blocks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = SIZES | {"num_key_value_heads": 1, "vocab_size": 100}
    config = transformers.LlamaConfig(**sizes, initializer_range=0.5, eos_token_id=None, pad_token_id=0)
    ids = torch.arange(3, 12)[None]

    def run(model: Any) -> torch.Tensor:
        found: torch.Tensor = model.generate(
            ids, max_new_tokens=4, do_sample=False, past_key_values=transformers.StaticCache(config, max_cache_len=16)
        )
        return found

    kinds = (transformers.LlamaForCausalLM, blocks("llama"), config)
    made, (ours, theirs) = served(run, *kinds, tmp_path / "store", monkeypatch)
    assert made == 2
    assert torch.equal(ours, theirs)


def test_layers_that_compute_with_their_index_share_one_that_takes_it(
    blocks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 4, "vocab_size": 100, "n_positions": 16, "initializer_range": 0.5}
    config = transformers.ImageGPTConfig(**sizes, scale_attn_by_inverse_layer_idx=True)
    ids = torch.arange(3, 12)[None]
    kinds = (transformers.ImageGPTForCausalImageModeling, blocks("imagegpt"), config)
    made, (ours, theirs) = served(
        lambda model: model(ids, use_cache=False).logits, *kinds, tmp_path / "store", monkeypatch
    )
    assert made == 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)
    # It makes a difference which index it takes.
    upstream, _ = pair(*kinds)
    upstream.transformer.h[2].attn.layer_idx = 0
    with torch.no_grad():
        assert not torch.allclose(upstream(ids, use_cache=False).logits, theirs, rtol=0, atol=5e-4)


def test_layers_that_ask_for_their_index_have_one_each(
    blocks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"d_model": 32, "vocab_size": 100, "max_position_embeddings": 32, "init_std": 0.5}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 3, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 48}
    config = transformers.BartConfig(**sizes, forced_eos_token_id=None)
    ids = torch.arange(3, 12)[None]

    def run(model: Any) -> torch.Tensor:
        # A cache for both kinds of attention is asked by a layer's index whether it has the encoder's states already.
        found: torch.Tensor = model(ids, decoder_input_ids=ids[:, :4], use_cache=True).logits
        return found

    kinds = (transformers.BartForConditionalGeneration, blocks("bart"), config)
    store = tmp_path / "store"
    with torch.no_grad(), building(store):
        run(pair(*kinds)[1])
    monkeypatch.setenv("VGEN_STORE", str(store))
    monkeypatch.setenv("VGEN_ARTIFACTS", "require")
    monkeypatch.setattr(region, "CompiledCore", EagerCore)
    runtime.reset_counters()
    upstream, generated = pair(*kinds)
    with torch.no_grad():
        torch.testing.assert_close(run(generated), run(upstream), rtol=0, atol=5e-5)
    counts = runtime.counters()
    made = {tag: len(list(store.glob(f"{tag}-*.vgenart"))) for tag in counts}
    assert made == {"bart.encoder.block": 1, "bart.decoder.block": 3}
    assert all(count.calls == count.loaded == 3 for count in counts.values())
