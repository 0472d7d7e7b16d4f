"""A model that holds recurrent states on its modules: results stay upstream's to the bit, and so do the states, whatever the calls
before left there; each kind of states is a variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import built
import pytest
import torch

import vgen.runtime as runtime


def states(model: Any) -> list[Any]:
    names = ("conv1d_state", "recurrent_states")
    return [vars(part)[name] for part in model.modules() for name in names if name in vars(part)]


def test_recurrent_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, _ = built.built_pair("recurrent_gemma", "RecurrentGemmaForCausalLM", tmp_path, monkeypatch)
    upstream.eval()
    generated.eval()

    def count() -> tuple[int, int]:
        found = runtime.counters()["recurrent_gemma.decoder"]
        assert not found.fallbacks
        assert found.compiles == found.variants
        return found.compiles, found.held

    def generate(batch: int, length: int) -> tuple[int, int]:
        ids = torch.randint(3, upstream.config.vocab_size, (batch, length))
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "disable_compile": True}
        settings |= {"output_logits": True, "return_dict_in_generate": True}
        theirs, ours = (model.generate(ids, **settings) for model in (upstream, generated))
        assert all(map(torch.equal, ours.logits, theirs.logits))
        require_equal_states()
        return count()

    def require_equal_states() -> None:
        theirs, ours = states(upstream), states(generated)
        assert ours
        assert all(map(torch.equal, ours, theirs))

    # Prefill on no states, the first step and those after it, whose states lie otherwise in memory.
    assert generate(2, 9) == (3, 1)
    # Prefill on states of another batch, then of the same one.
    assert generate(3, 14) == (4, 2)
    assert generate(3, 11) == (5, 3)
    assert generate(4, 12) == (5, 3)
    assert generate(4, 10) == (5, 3)
    with torch.inference_mode():
        ids = torch.randint(3, upstream.config.vocab_size, (2, 6))
        for _ in range(2):
            assert torch.equal(generated(ids).logits, upstream(ids).logits)
            require_equal_states()
    before = count()[0]
    # On states of inference mode.
    assert generate(3, 9)[0] == before + 1
    assert generate(3, 13)[0] == before + 1
