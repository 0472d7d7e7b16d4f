"""Attention that looks both ways by its config or its mask alone, where a graph would look elsewhere than upstream in eager."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
import torch
from conftest import run_vgen
from transformers import (
    CONFIG_MAPPING,
    BarkSemanticConfig,
    BarkSemanticModel,
    BartConfig,
    BartModel,
    GemmaForCausalLM,
    Phi4MultimodalVisionConfig,
    Phi4MultimodalVisionModel,
)

import vgen.runtime as runtime
from vgen.runtime.causality import graph_only_masks


@torch.no_grad()
@pytest.mark.parametrize("both_ways", [True, False])
def test_without_a_mask(both_ways: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph makes no mask where the region looked at the positions, as upstream does without a cache; else it runs uncompiled."""
    package = f"both_ways_{both_ways}"
    assert run_vgen("build", "gemma", "--out", package, cwd=tmp_path).returncode == 0
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    config = CONFIG_MAPPING["gemma"](**tiny.TEXT, head_dim=16, use_bidirectional_attention=both_ways)
    upstream = GemmaForCausalLM(config).eval()
    with runtime.options(backend="eager"):
        generated = tiny.generated_class("gemma", package, "GemmaForCausalLM")(config).eval()
    generated.load_state_dict(upstream.state_dict())
    ids = tiny.text(2, 7)
    for positions in (None, torch.arange(7)[None], torch.arange(7)[None] + 3):
        expected = upstream(ids, position_ids=positions, use_cache=False).logits
        assert torch.equal(generated(ids, position_ids=positions, use_cache=False).logits, expected)
    assert tiny.fallbacks() == {}
    packed = torch.arange(7)[None] % 4
    for given in ({"position_ids": packed, "use_cache": False}, {"use_cache": True}):
        assert torch.equal(generated(ids, **given).logits, upstream(ids, **given).logits)
        assert bool(tiny.fallbacks()) is both_ways
        runtime.reset_counters()
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    expected = upstream(ids, attention_mask=mask, use_cache=False).logits
    assert torch.equal(generated(ids, attention_mask=mask, use_cache=False).logits, expected)
    assert tiny.fallbacks() == {}


@torch.no_grad()
@pytest.mark.parametrize("masked", [None, 0, 1], ids=["no mask", "masks nothing", "masks a patch"])
def test_causal_where_nothing_is_masked(masked: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's attention is causal as long as every patch is there, which no graph knows: it runs uncompiled, and says why."""
    assert run_vgen("build", "phi4_multimodal", "--out", "causal_images", cwd=tmp_path).returncode == 0
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    config = Phi4MultimodalVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    upstream = Phi4MultimodalVisionModel(config).eval()
    with runtime.options(backend="eager", compile_mm_encoder=True):
        generated = tiny.generated_class("phi4_multimodal", "causal_images", "Phi4MultimodalVisionModel")(
            config
        ).eval()
    generated.load_state_dict(upstream.state_dict())
    pixels = torch.randn(2, 3, config.image_size, config.image_size)
    mask = None
    if masked is not None:
        mask = torch.ones(2, *[config.image_size // config.patch_size] * 2, dtype=torch.bool)
        mask[1, -1, :masked] = False
    expected = upstream(pixels, patch_attention_mask=mask).last_hidden_state
    assert torch.equal(generated(pixels, patch_attention_mask=mask).last_hidden_state, expected)
    ((reason,),) = tiny.fallbacks().values()
    assert "masking_utils.py:" in reason


def test_causal_attention_beside_others() -> None:
    """A decoder's own attention is causal with a causal mask; what looks at the encoder isn't."""
    sizes = {f"{each}_{name}": size for each in ("encoder", "decoder") for name, size in _BART.items()}
    assert graph_only_masks(BartModel(BartConfig(d_model=32, vocab_size=64, **sizes))) == ()


def test_causal_attention_without_sdpa() -> None:
    """Bark's attention has a causal mask of its own, and adds the other to it."""
    config = BarkSemanticConfig(input_vocab_size=64, output_vocab_size=64, num_layers=1, num_heads=2, hidden_size=32)
    assert graph_only_masks(BarkSemanticModel(config)) == ()


_BART = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
