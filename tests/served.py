"""A tiny Llama that is served from artifacts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tiny
import torch
from transformers import LlamaForCausalLM, StaticCache

import vgen.runtime as runtime
from vgen.runtime.compiler import CompiledCore

PROMPT = tiny.text(2, 9)


def make() -> tuple[Any, Any]:
    """Upstream's model and the generated one, with the same weights."""
    torch.manual_seed(0)
    upstream = LlamaForCausalLM(tiny.config("llama", num_hidden_layers=1)).eval()
    generated = tiny.generated_class("llama")(tiny.config("llama", num_hidden_layers=1)).eval()
    generated.load_state_dict(upstream.state_dict())
    return upstream, generated


def decode(model: Any, steps: int = 3) -> torch.Tensor:
    """The logits of a prefill and some steps with a static cache."""
    cache, ids, logits = StaticCache(config=model.config, max_cache_len=32), PROMPT, []
    for _ in range(steps):
        logits.append(model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1:])
        ids = logits[-1].argmax(-1)
    return torch.cat(logits, 1)


class EagerCore(CompiledCore):
    """What isn't served from the store is traced as always, but not compiled by Inductor: that takes many seconds."""

    def __init__(self, core: Any, *, options: Any, **keywords: Any) -> None:
        super().__init__(core, options=replace(options, backend="eager"), **keywords)


def served_once() -> tuple[Any, Any]:
    upstream, generated = make()
    runtime.reset_counters()
    with torch.no_grad():
        expected = upstream(input_ids=PROMPT, use_cache=False).logits
        torch.testing.assert_close(generated(input_ids=PROMPT, use_cache=False).logits, expected)
        torch.testing.assert_close(decode(generated), decode(upstream))
    count = runtime.counters()["llama.decoder"]
    assert (count.calls, count.loaded, count.compiles) == (4, 4, 0)
    return upstream, generated
