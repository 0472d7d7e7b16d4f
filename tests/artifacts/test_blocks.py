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
from vgen.runtime.artifact import building

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("blocks")
    done = run_vgen("build", "siglip", "--granularity", "block", "--out", "block_models", cwd=root)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        yield importlib.import_module("block_models.siglip")


def make(blocks: Any) -> tuple[Any, Any]:
    config = transformers.SiglipVisionConfig(image_size=32, patch_size=8, **SIZES)
    torch.manual_seed(0)
    upstream = transformers.SiglipVisionModel(config).eval()
    with runtime.options(compile_mm_encoder=True):
        generated = blocks.SiglipVisionModel(config).eval()
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
