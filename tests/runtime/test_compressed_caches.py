"""Caches that compress tokens by windows: how many windows a call fills is a variant, and so is what waits for the next."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
import torch
from transformers import DeepseekV4ForCausalLM, MistralConfig, MistralForCausalLM, Qwen3NextForCausalLM

from vgen.runtime.caches import make_contiguous
from vgen.runtime.describe import describe
from vgen.runtime.limits import Limits
from vgen.verify.making import make_tiny

RATE = 4


@pytest.fixture(scope="module")
def model() -> Any:
    made = make_tiny(DeepseekV4ForCausalLM)
    # More than any call here, so that windows of attention are no limit.
    made.config.sliding_window = 1000
    made.config.compress_rates = {"compressed_sparse_attention": RATE, "heavily_compressed_attention": 1000}
    made.config.index_topk = 3
    return DeepseekV4ForCausalLM(made.config).eval()


def call(length: int, cache: Any = None) -> dict[str, Any]:
    return {"input_ids": torch.full((2, length), 5), "past_key_values": cache}


def sides(model: Any, length: int, cache: Any = None) -> tuple[Hashable, ...]:
    return Limits(model.model, model.config).sides(call(length, cache))


def test_one_and_two_windows_are_apart_from_more(model: Any) -> None:
    by_length = [sides(model, length) for length in (3, 4, 7, 8, 11, 12, 15, 17, 33)]
    none, one, same_one, two, same_two, three, same_three, *more = by_length
    assert len({none, one, two, three}) == 4
    assert (one, two, three) == (same_one, same_two, same_three)
    # As many as are chosen of: three or more.
    assert set(more) == {three}


@torch.no_grad()
def test_what_waits_counts_for_the_next_window(model: Any) -> None:
    cache = model(**call(5)).past_key_values
    seen = []
    for _ in range(5 * RATE):
        make_contiguous(call(1, cache))
        seen.append((sides(model, 1, cache), describe(cache)))
        model(**call(1, cache))
    # One token waits, two, three, which with the next one fill a window, and none.
    ends = [end for end, _ in seen]
    assert ends[0] == ends[1] != ends[2]
    assert len(set(seen[:4])) == 4
    # From as many windows as are chosen of, calls come again.
    assert set(seen[-RATE:]) == set(seen[-2 * RATE : -RATE])


@torch.no_grad()
def test_what_waits_is_no_part_of_other_tensors(model: Any) -> None:
    cache = model(**call(5)).past_key_values
    before = {key: each.clone() for key, each in cache.layers[-1].__dict__.get("buffer_kv", {}).items()}
    held = [layer for layer in cache.layers if "buffer_kv" in vars(layer)]
    assert any(not each.is_contiguous() for layer in held for each in layer.buffer_kv.values())
    make_contiguous(call(1, cache))
    for layer in held:
        assert all(each.is_contiguous() and not each._is_view() for each in layer.buffer_kv.values())
    assert all(torch.equal(cache.layers[-1].buffer_kv[key], each) for key, each in before.items())


@torch.no_grad()
def test_states_of_linear_attention_are_left_alone() -> None:
    made = make_tiny(Qwen3NextForCausalLM)
    cache = made.model.eval()(torch.full((2, 7), 5), use_cache=True).past_key_values
    held = [
        (kept, key, each)
        for layer in cache.layers
        for kept in vars(layer).values()
        if isinstance(kept, dict)
        for key, each in kept.items()
        if isinstance(each, torch.Tensor)
    ]
    make_contiguous({"past_key_values": cache})
    assert held
    assert all(kept[key] is each for kept, key, each in held)


def test_other_configs_have_no_such_limit() -> None:
    config = MistralConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=8,
    )
    config.sliding_window = None
    limits = Limits(MistralForCausalLM(config).model, config)
    assert {limits.sides(call(length)) for length in (3, 4, 12)} == {()}
