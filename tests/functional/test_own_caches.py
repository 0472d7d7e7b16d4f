"""A cache of a model's own class, which is no cache of Transformers': decode steps are one graph, equal to upstream's to the bit."""

from __future__ import annotations

from pathlib import Path

import built
import pytest
import torch

import vgen.runtime as runtime


@torch.no_grad()
def test_steps_with_a_plain_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, _ = built.built_pair("xlstm", "xLSTMModel", tmp_path, monkeypatch)
    upstream.eval()
    generated.eval()
    for batch in (2, 3):
        caches = [None, None]
        for step in range(4):
            ids = torch.randint(3, upstream.config.vocab_size, (batch, 5 if step == 0 else 1))
            theirs, ours = (
                model(ids, cache_params=cache, use_cache=True)
                for model, cache in zip((upstream, generated), caches, strict=True)
            )
            assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
            # It is the caller's that a graph writes to.
            assert step == 0 or ours.cache_params is caches[1]
            caches = [theirs.cache_params, ours.cache_params]
            assert torch.equal(caches[1].seqlen_offset, caches[0].seqlen_offset)
            for layer, states in caches[0].rnn_state.items():
                assert all(map(torch.equal, caches[1].rnn_state[layer], states))
    count = runtime.counters()["xlstm.decoder"]
    assert (count.compiles, count.variants) == (2, 2)
    assert not count.fallbacks
