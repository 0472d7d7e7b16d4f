"""Modules that write a buffer while they run: inference first and training after it, as upstream can."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from conftest import run_vgen

import vgen.runtime as runtime
from vgen.verify.making import make_tiny


@pytest.mark.parametrize("name", ["Wav2Vec2ConformerModel", "Wav2Vec2BertModel"])
def test_training_after_inference(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"Wav2Vec2ConformerModel": "wav2vec2_conformer", "Wav2Vec2BertModel": "wav2vec2_bert"}[name]
    folder = f"inference_first_{package}"
    assert run_vgen("build", package, "--out", folder, cwd=tmp_path).returncode == 0
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    made = make_tiny(getattr(transformers, name))
    config = made.config
    config.position_embeddings_type = "relative"
    # Longer than the inputs: upstream replaces the buffer itself where it has to grow.
    config.max_source_positions = 512
    torch.manual_seed(0)
    upstream = getattr(transformers, name)(config).eval()
    with runtime.options(backend="eager", compile_mm_encoder=True):
        generated = tiny.generated_class(package, folder, name)(config).eval()
    generated.load_state_dict(upstream.state_dict())
    for model in (upstream, generated):
        with torch.inference_mode():
            model(**made.inputs)
    assert not any(each.is_inference() for each in generated.buffers())
    ours, theirs = generated(**made.inputs), upstream(**made.inputs)
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    for output in (ours, theirs):
        output.last_hidden_state.pow(2).mean().backward()
    for one, other in zip(generated.parameters(), upstream.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
