"""Gradient checkpoints: what backward computes again has the dropout that forward had, and gradients are upstream's to the bit."""

from __future__ import annotations

from pathlib import Path

import built
import pytest
import tiny
import torch

import vgen.runtime as runtime


@pytest.mark.parametrize(("package", "name"), [("bert", "BertModel"), ("granite", "GraniteModel")])
def test_dropout_is_drawn_once(package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    inputs = {"input_ids": tiny.text(2, 9) % made.config.vocab_size}
    results = []
    for rate in (0.0, 0.4):
        for model in (upstream, generated):
            model.gradient_checkpointing_enable()
            for part in model.modules():
                for field in ("p", "attention_dropout"):
                    if isinstance(getattr(part, field, None), float):
                        setattr(part, field, rate)
        results.append(built.require_equal_steps(upstream, generated, inputs)["last_hidden_state"])
    assert not torch.equal(*results)
    assert all(not count.fallbacks for count in runtime.counters().values())
