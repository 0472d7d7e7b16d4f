# SPDX-License-Identifier: Apache-2.0
"""Which calls share a variant, and which calls the contract rejects."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, EncoderDecoderCache, LlamaConfig, StaticCache, xLSTMConfig
from transformers.models.xlstm.modeling_xlstm import xLSTMCache

from vgen.runtime import Contract, size, tensor
from vgen.runtime.contract import Violation

MODULE = torch.nn.Identity()
TEXT = Contract(
    ids=tensor("batch", "length"), mask=tensor("batch", "kv"), embeds=tensor("batch", "length", None), n=size()
)


def variant(**arguments: Any) -> Any:
    return TEXT.variant(MODULE, arguments)


def bits(*lengths: int) -> tuple[int, ...]:
    return tuple(min(each, 2) for each in lengths)


@given(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.tuples(st.integers(0, 4), st.integers(0, 4)))
def test_dynamic_sizes_differ_only_in_zero_one_and_more(a: tuple[int, int], b: tuple[int, int]) -> None:
    same = variant(ids=torch.zeros(a)) == variant(ids=torch.zeros(b))
    assert same == (bits(*a) == bits(*b))


@given(st.integers(0, 4), st.integers(0, 4))
def test_dimensions_of_one_name_that_differ_are_another_variant(a: int, b: int) -> None:
    key = variant(ids=torch.zeros(a, 7), mask=torch.zeros(b, 9))
    equal = variant(ids=torch.zeros(a, 7), mask=torch.zeros(a, 9))
    # Sizes of the same kind (0, 1, more) are told apart by their equality alone.
    if bits(a) == bits(b):
        assert (key == equal) == (a == b)
    else:
        assert key != equal


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_plain_values_are_keys_by_value(value: object) -> None:
    key = variant(extra=value)
    assert hash(key) == hash(variant(extra=value))
    assert key != variant(extra=[value])


def test_true_is_not_one() -> None:
    assert len({variant(x=True), variant(x=1), variant(x=1.0), variant(x=None), variant()}) == 5


def test_sizes_are_ints_that_may_change() -> None:
    assert variant(n=7) == variant(n=9)
    assert len({variant(n=7), variant(n=1), variant(n=0), variant(n=None), variant(n=True)}) == 5


def test_static_sizes_are_in_the_key() -> None:
    assert variant(embeds=torch.zeros(2, 3, 8)) == variant(embeds=torch.zeros(4, 5, 8))
    assert variant(embeds=torch.zeros(2, 3, 8)) != variant(embeds=torch.zeros(2, 3, 4))


def test_another_size_of_a_fixed_dimension_is_another_variant() -> None:
    contract = Contract(x=tensor("n", 2))
    as_expected = contract.variant(MODULE, {"x": torch.zeros(5, 2)})
    assert as_expected == contract.variant(MODULE, {"x": torch.zeros(7, 2)})
    assert as_expected != contract.variant(MODULE, {"x": torch.zeros(5, 3)})


def test_another_number_of_dimensions_is_another_variant() -> None:
    assert variant(ids=torch.zeros(3, 2, 5)) == variant(ids=torch.zeros(4, 3, 6)) != variant(ids=torch.zeros(2, 5))


@pytest.mark.parametrize(
    "other",
    [torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, device="meta"), torch.zeros(2, 5, requires_grad=True)],
)
def test_tensor_properties_are_in_the_key(other: torch.Tensor) -> None:
    assert variant(ids=torch.zeros(2, 5)) != variant(ids=other)


def test_modes_are_in_the_key() -> None:
    keys = [variant()]
    with torch.no_grad():
        keys.append(variant())
    with torch.inference_mode():
        keys.append(variant())
    with torch.autocast("cpu", torch.bfloat16):
        keys.append(variant())
    with torch.autocast("cpu", torch.float16):
        keys.append(variant())
    keys.append(TEXT.variant(torch.nn.Identity().eval(), {}))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("value", [object(), SimpleNamespace(), {"a": object()}, [object()], {torch.float: 1}, len])
def test_other_types_are_a_violation(value: object) -> None:
    outcome = variant(extra=value)
    assert isinstance(outcome, Violation)
    assert outcome.reason.startswith("extra has a ")
    assert "0x" not in outcome.reason


def filled(cache: Any, length: int, layers: int = 2) -> Any:
    for layer in range(layers):
        cache.update(torch.zeros(2, 2, length, 4), torch.zeros(2, 2, length, 4), layer)
    return cache


def test_caches() -> None:
    empty = variant(cache=DynamicCache())
    short, long = (variant(cache=filled(DynamicCache(), n)) for n in (5, 9))
    assert short == long
    assert (
        len({empty, short, variant(cache=filled(DynamicCache(), 1)), variant(cache=filled(DynamicCache(), 5, 3))}) == 4
    )


def test_static_caches(tiny: Any) -> None:
    config = tiny.llama_config()
    new = [StaticCache(config=config, max_cache_len=n) for n in (8, 16)]
    fresh = [variant(cache=each) for each in new]
    used = [variant(cache=filled(each, 3)) for each in new]
    assert fresh[0] == fresh[1] != used[0] == used[1]


def test_encoder_decoder_caches() -> None:
    empty = EncoderDecoderCache(DynamicCache(), DynamicCache())
    used = EncoderDecoderCache(filled(DynamicCache(), 3), filled(DynamicCache(), 4))
    assert variant(cache=empty) != variant(cache=used)


def states(batch: int = 3, **changes: object) -> xLSTMCache:
    cache = xLSTMCache(xLSTMConfig(num_hidden_layers=2, num_heads=2, hidden_size=8), batch, dtype=torch.float32)
    vars(cache).update(changes)
    return cache


def test_plain_objects_that_hold_tensors() -> None:
    plain = variant(cache=states())
    assert isinstance(plain, tuple)
    # Sizes, counts and values are no part of it, and neither is the config, which is another object.
    assert variant(cache=states(5)) == plain
    assert variant(cache=states(seqlen_offset=torch.tensor([7]))) == plain
    assert variant(cache=states(count=1)) == variant(cache=states(count=2)) != plain
    first, others = states().rnn_state[0], states().rnn_state
    kinds = [
        variant(cache=each)
        for each in (
            states(1),
            states(rnn_state_initial=False),
            states(rnn_state_initial=True),
            states(seqlen_offset=None),
            states(rnn_state={0: first}),
            states(rnn_state={**others, 1: first[:2]}),
            states(rnn_state={**others, 1: list(first)}),
            states(rnn_state={**others, 1: (first[0].double(), *first[1:])}),
        )
    ]
    assert len({plain, *kinds}) == len(kinds) + 1


def test_arguments_are_readable() -> None:
    assert TEXT.arguments == {
        "ids": tensor("batch", "length"),
        "mask": tensor("batch", "kv"),
        "embeds": tensor("batch", "length", None),
        "n": size(),
    }


def test_mark_static_marks_what_is_not_named() -> None:
    embeds = torch.zeros(2, 3, 8)
    TEXT.mark_static({"embeds": embeds, "ids": None})
    assert embeds._dynamo_static_indices == {2}  # type: ignore[attr-defined]


def test_of_a_cache_only_batch_and_length_are_dynamic() -> None:
    """Also where nothing that is computed with it fixes the rest: on a GPU, attention in a kernel of cuDNN doesn't."""
    cache = EncoderDecoderCache(StaticCache(config=LlamaConfig(num_hidden_layers=1), max_cache_len=9), DynamicCache())
    for each in (cache.self_attention_cache, cache.cross_attention_cache):
        each.update(torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 6), 0)
    TEXT.mark_static({"cache": cache})
    shapes: list[tuple[int | torch.SymInt, ...]] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        values = (node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder")
        shapes.extend(tuple(each.shape) for each in values if isinstance(each, torch.Tensor) and each.ndim == 4)
        return graph

    def core(cache: Any) -> list[torch.Tensor]:
        parts = (cache.self_attention_cache, cache.cross_attention_cache)
        return [states + 1 for part in parts for layer in part.layers for states in (layer.keys, layer.values)]

    torch.compile(core, backend=backend, fullgraph=True, dynamic=True)(cache)
    # To compare a symbol with a number would fix it.
    assert [[type(length) for length in shape] for shape in shapes] == [[torch.SymInt, int] * 2] * 4
