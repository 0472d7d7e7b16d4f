# SPDX-License-Identifier: Apache-2.0
"""States that modules hold from call to call: which attributes they are, what tells their kinds apart, and that another kind takes
a graph of its own, which is counted as a variant."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    ClvpEncoderConfig,
    LlamaConfig,
    RecurrentGemmaConfig,
    RecurrentGemmaModel,
    RwkvConfig,
    RwkvModel,
)
from transformers.models.clvp.modeling_clvp import ClvpRotaryPositionalEmbedding
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

from vgen.runtime import Compiled, Contract, Region, Role, counters, options, tensor
from vgen.runtime.held_states import HeldStates, kinds

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 8}


def recurrent_config() -> RecurrentGemmaConfig:
    return RecurrentGemmaConfig(**SIZES, lru_width=16, num_hidden_layers=2, block_types=["recurrent"])


def recurrence() -> RecurrentGemmaRglru:
    torch.manual_seed(0)
    unit = RecurrentGemmaRglru(recurrent_config()).eval()
    for each in unit.parameters():
        nn.init.normal_(each)
    return unit


def inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
    states = torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(batch))
    return {"activations": states, "position_ids": 3 + torch.arange(length)[None]}


def test_recurrent_states_are_found() -> None:
    held = HeldStates(RecurrentGemmaModel(recurrent_config()))
    assert not held.is_empty
    assert [name for _, name in held._places] == ["conv1d_state", "recurrent_states"] * 2
    assert held.now() == [None] * 4


def test_flags_that_a_forward_sets_are_states() -> None:
    model = RwkvModel(RwkvConfig(vocab_size=8, hidden_size=16, num_hidden_layers=2, rescale_every=1)).eval()
    held = HeldStates(model)
    assert [name for _, name in held._places] == ["layers_are_rescaled"]
    before = held.now()
    model(torch.ones(1, 3, dtype=torch.long))
    assert not held.are(before)
    assert kinds(held.now(), {}, []) != kinds(before, {}, [])


@pytest.mark.parametrize("config", [LlamaConfig, BertConfig])
def test_most_models_hold_none(config: Callable[..., object]) -> None:
    assert HeldStates(AutoModel.from_config(config(**SIZES, num_hidden_layers=1))).is_empty


def test_what_is_forgotten_around_each_graph_is_none() -> None:
    assert HeldStates(ClvpRotaryPositionalEmbedding(ClvpEncoderConfig())).is_empty


def test_states_are_put_back() -> None:
    unit = recurrence()
    held = HeldStates(unit)
    before = held.now()
    unit(**inputs(2, 3))
    assert not held.are(before)
    held.put_back(before)
    assert held.are(before)
    assert unit.recurrent_states is None


def made_in_inference_mode() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3, 4, 2)


OTHERS: dict[str, Callable[[], torch.Tensor | None]] = {
    "none": lambda: None,
    "dtype": lambda: torch.ones(3, 4, 2, dtype=torch.float64),
    "gradients": lambda: torch.ones(3, 4, 2, requires_grad=True),
    "inference mode": made_in_inference_mode,
    "one sample": lambda: torch.ones(1, 4, 2),
    "a dimension less": lambda: torch.ones(3, 4),
    "as many samples as there are inputs": lambda: torch.ones(5, 4, 2),
    "strides": lambda: torch.ones(3, 2, 4).transpose(1, 2),
    "a part of a larger tensor": lambda: torch.ones(3, 4, 3)[..., :2],
    "the end of a larger tensor": lambda: torch.ones(4, 4, 2)[1:],
    "sparse": lambda: torch.ones(3, 4, 2).to_sparse(),
    "a class": lambda: nn.Parameter(torch.ones(3, 4, 2), requires_grad=False),
}


@pytest.mark.parametrize("other", OTHERS)
def test_kinds_that_take_a_graph_of_their_own(other: str) -> None:
    given, dynamic = {"x": torch.ones(5, 9)}, [("x", 0), ("x", 1)]
    plain = kinds([torch.ones(3, 4, 2)], given, dynamic)
    assert kinds([torch.ones(7, 6, 3)], given, dynamic) == plain
    assert kinds([OTHERS[other]()], given, dynamic) != plain
    hash(kinds([OTHERS[other]()], given, dynamic))


class Recurs(Compiled, nn.Module):
    region = Region(
        "held.decoder",
        role=Role.DECODER,
        contract=Contract(
            activations=tensor("batch_size", "sequence_length", None), position_ids=tensor(None, "sequence_length")
        ),
    )

    def __init__(self, unit):
        super().__init__()
        self.unit = unit

    def forward(self, **arguments):
        return self.region(self, **arguments)

    def core(self, activations, position_ids):
        return self.unit(activations, position_ids)


@torch.no_grad()
def test_each_kind_of_states_is_a_variant() -> None:
    with options(backend="eager"):
        module = Recurs(recurrence()).eval()
    upstream = recurrence()

    def step(batch: int) -> tuple[int, int, int]:
        given = inputs(batch, 1)
        assert torch.equal(module(**given), upstream(**given))
        assert torch.equal(module.unit.recurrent_states, upstream.recurrent_states)
        count = counters()["held.decoder"]
        assert not count.fallbacks
        return count.compiles, count.variants, count.held

    def hold(state: torch.Tensor | None) -> None:
        module.unit.recurrent_states = upstream.recurrent_states = state

    # None at first; then tensors, whose values and sizes make no difference.
    assert step(2) == (1, 1, 0)
    assert step(2) == (2, 2, 1)
    assert step(2) == (2, 2, 1)
    hold(torch.ones(3, 1, 16)[:, 0])
    assert step(3) == (2, 2, 1)
    # No view of another tensor, as those that upstream leaves there are.
    hold(torch.ones(3, 16))
    assert step(3) == (3, 3, 2)
    hold(torch.ones(4, 16))
    assert step(4) == (3, 3, 2)
    hold(None)
    assert step(3) == (3, 3, 2)


@torch.no_grad()
def test_what_compiles_again_for_the_same_kind_is_no_variant() -> None:
    with options(backend="eager"):
        module = Recurs(recurrence()).eval()
    module(**inputs(2, 1))
    module.unit.recurrent_states = None
    # Something else than a state.
    module.unit.num_attention_heads, module.unit.block_width = 1, 16
    for name in ("input_gate", "recurrent_gate"):
        setattr(module.unit, f"{name}_weight", nn.Parameter(torch.ones(1, 16, 16)))
        setattr(module.unit, f"{name}_bias", nn.Parameter(torch.ones(1, 16)))
    module(**inputs(2, 1))
    count = counters()["held.decoder"]
    assert (count.compiles, count.variants, count.held) == (2, 1, 0)
