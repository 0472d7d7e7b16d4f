"""A text decoder whose attention looks both ways: without a mask a graph would be causal, so upstream's forward runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
import torch
from conftest import run_vgen
from transformers import CONFIG_MAPPING, GemmaForCausalLM

import vgen.runtime as runtime


@torch.no_grad()
@pytest.mark.parametrize("both_ways", [True, False])
def test_without_a_mask_it_runs_uncompiled(both_ways: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = f"both_ways_{both_ways}"
    assert run_vgen("build", "gemma", "--out", package, cwd=tmp_path).returncode == 0
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    config = CONFIG_MAPPING["gemma"](**tiny.TEXT, head_dim=16, use_bidirectional_attention=both_ways)
    upstream = GemmaForCausalLM(config).eval()
    with runtime.options(backend="eager"):
        generated = tiny.generated_class("gemma", package, "GemmaForCausalLM")(config).eval()
    generated.load_state_dict(upstream.state_dict())
    ids = tiny.text(2, 7)
    assert torch.equal(generated(ids, use_cache=False).logits, upstream(ids, use_cache=False).logits)
    assert bool(tiny.fallbacks()) is both_ways
    runtime.reset_counters()
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    expected = upstream(ids, attention_mask=mask, use_cache=False).logits
    assert torch.equal(generated(ids, attention_mask=mask, use_cache=False).logits, expected)
    assert tiny.fallbacks() == {}
