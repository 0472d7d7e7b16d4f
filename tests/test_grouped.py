"""Grouped attention: every attention class with groups is found, and inside a graph it computes what eager computes."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from upstreams import copy_upstream, edit_upstream

from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.grouped import is_lookup, lookup
from vgen.codegen.build import generate
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed
from vgen.runtime import grouped_attention

SDPA = "transformers/integrations/sdpa_attention.py"


@cache
def source() -> Source:
    return installed()


def test_every_attention_with_groups_is_found() -> None:
    """What the rule doesn't find, though it has groups and looks its function up, has a reason."""
    classes, found, missed = Classes(source()), 0, []
    for model in source().models():
        file = source().modeling_file(model)
        for definition in file.definitions.values():
            ref = Ref(file=file.rel, name=definition.name)
            method = classes.method(ref, "forward") if definition.is_class else None
            text = "".join(file.lines[definition.first_line - 1 : definition.last_line])
            has_groups = "self.num_key_value_groups = " in text and "self.num_key_value_groups = 1" not in text
            if method is None or method[0] != ref or not has_groups:
                continue
            if not any(is_lookup(node) for node in ast.walk(method[1])):
                continue
            if lookup(classes, ref, method[0], method[1]) is None:
                missed.append(definition.name)
            found += 1
    assert missed == []
    assert found > 120


def test_encoders_and_ungrouped_attention_are_left_alone() -> None:
    for model in ("whisper", "bart", "bert", "siglip"):
        assert "grouped_attention" not in generate(model, source()).files[f"modeling_{model}.py"]


def test_without_the_branch_upstream_nothing_is_rewritten(tmp_path: Path) -> None:
    root = copy_upstream(tmp_path / "site")
    edit_upstream(root, SDPA, "elif q_length == 1 and not is_torchdynamo_compiling():", "elif q_length == 1:")
    package = generate("llama", folder(root))
    assert [rewrite.rule for rewrite in package.plan.rewrites] == []


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_steps_are_bit_equal(padding: str | None, cache: str) -> None:
    upstream, generated = tiny.pair("llama")
    for expected, found in zip(_steps(upstream, padding, cache), _steps(generated, padding, cache), strict=True):
        assert torch.equal(expected, found)
    assert tiny.fallbacks() == {}


def _steps(model: Any, padding: str | None, cache: str) -> list[torch.Tensor]:
    """The logits of a prompt and of three tokens after it."""
    inputs = tiny.padded("llama", padding) if padding else {"input_ids": tiny.text(2, 13)}
    mask = inputs.get("attention_mask", torch.ones(2, 13, dtype=torch.long))
    states = DynamicCache() if cache == "dynamic" else StaticCache(config=model.config, max_cache_len=24)
    found = [model(input_ids=inputs["input_ids"], attention_mask=mask, past_key_values=states).logits]
    for step in range(3):
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        found.append(model(tiny.text(2, 1, seed=step), attention_mask=mask, past_key_values=states).logits)
    return found


@torch.no_grad()
def test_a_sliding_window_has_a_mask_once_it_is_full() -> None:
    """Also where the mask of the one token hides nothing: as many keys are left as the window is long."""
    upstream, generated = tiny.pair("mistral", changes={"sliding_window": 8})
    for expected, found in zip(_steps(upstream, None, "dynamic"), _steps(generated, None, "dynamic"), strict=True):
        assert torch.equal(expected, found)
    assert tiny.fallbacks() == {}


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    query_length=st.sampled_from([1, 1, 5]),
    extra=st.integers(0, 6),
    masked=st.integers(0, 3),
    spread=st.sampled_from([(), (), (2,), (3,), (2, 3)]),
    needs_grad=st.booleans(),
)
def test_it_is_upstreams_attention(
    batch: int,
    groups: int,
    kv_heads: int,
    query_length: int,
    extra: int,
    masked: int,
    spread: tuple[int, ...],
    needs_grad: bool,
) -> None:
    """By the operator, and where gradients are asked for with the heads packed in the graph; also for masks that have one row or
    column for all, the dimensions in `spread`."""
    generator = torch.Generator().manual_seed(batch + 10 * groups + 100 * kv_heads)
    kv_length = query_length + extra
    query, key, value = (
        torch.randn(batch, heads, length, 8, generator=generator)
        for heads, length in ((groups * kv_heads, query_length), (kv_heads, kv_length), (kv_heads, kv_length))
    )
    query.requires_grad_(needs_grad)
    mask = torch.ones(batch, 1, query_length, kv_length, dtype=torch.bool)
    mask[0, :, :, : min(masked, kv_length - 1)] = False
    mask[:, :, 0, 0] |= ~mask.any(-1)[:, :, 0]
    for dimension in spread:
        mask = mask.narrow(dimension, 0, 1)
    module: Any = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    found, weights = grouped_attention(sdpa_attention_forward)(module, query, key, value, mask, scaling=0.3)
    assert weights is None
    assert found.shape == expected.shape == (batch, query_length, groups * kv_heads, 8)
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if bool(mask.all()) is False else 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 1, 1, 9), (2, 1, 9, 1), (1, 1, 1, 9), (1, 1, 1, 1), (2, 1, 9, 9)])
def test_masks_that_hide_nothing_are_not_causal(shape: tuple[int, ...]) -> None:
    """As those that are given to make a decoder look both ways."""
    upstream, generated = tiny.pair("llama")
    inputs = {"input_ids": tiny.text(2, 9), "attention_mask": torch.ones(shape, dtype=torch.bool), "use_cache": False}
    assert torch.equal(generated(**inputs).logits, upstream(**inputs).logits)
    assert tiny.fallbacks() == {}


def test_other_functions_are_themselves() -> None:
    def other() -> None:
        pass

    assert grouped_attention(other) is other


@torch.no_grad()
def test_whether_it_is_causal_may_be_a_comparison_of_sizes() -> None:
    """As Moonshine's decoder asks for it: in a graph that is a symbol, which SDPA doesn't take."""
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        is_causal = module.is_causal and query.shape[2] > 1
        attended: torch.Tensor = grouped_attention(sdpa_attention_forward)(
            module, query, key, value, None, is_causal=is_causal
        )[0]
        return attended

    compiled = torch.compile(attend, backend="eager", dynamic=True, fullgraph=True)
    for length in (5, 9):
        query, (key, value) = torch.randn(2, 4, length, 8), torch.randn(2, 2, 2, length, 8)
        assert torch.equal(compiled(query, key, value), attend(query, key, value))
