# SPDX-License-Identifier: Apache-2.0
"""What modules remember of a call by its length: one graph serves all lengths, and leaves nothing behind."""

import pytest
import torch
from torch import nn
from transformers import ClvpEncoderConfig, Wav2Vec2ConformerConfig
from transformers.models.clvp.modeling_clvp import ClvpRotaryPositionalEmbedding
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerRotaryPositionalEmbedding,
)

from vgen.runtime import Compiled, Contract, Region, Role, counters, options, tensor

ROTARY = {
    "clvp": lambda: ClvpRotaryPositionalEmbedding(ClvpEncoderConfig()),
    "wav2vec2_conformer": lambda: Wav2Vec2ConformerRotaryPositionalEmbedding(Wav2Vec2ConformerConfig()),
}


class Adds(Compiled, nn.Module):
    region = Region(
        "memos.encoder",
        role=Role.ENCODER,
        contract=Contract(hidden_states=tensor("batch_size", "sequence_length", None)),
        text=True,
    )

    def __init__(self, rotary):
        super().__init__()
        self.rotary = rotary

    def forward(self, hidden_states):
        return self.region(self, hidden_states=hidden_states)

    def core(self, hidden_states):
        return hidden_states.sum() + self.rotary(hidden_states)


@pytest.mark.parametrize("name", ROTARY)
@torch.no_grad()
def test_one_graph_serves_all_lengths(name: str) -> None:
    rotary = ROTARY[name]()
    with options(backend="eager"):
        module = Adds(rotary).eval()
    for length in (5, 9, 9, 17):
        states = torch.randn(2, length, 8)
        found = module(states)
        assert rotary.cached_sequence_length is None
        assert torch.equal(found, states.sum() + ROTARY[name]()(states))
    count = counters()["memos.encoder"]
    assert count.compiles == count.variants == 1
    assert not count.fallbacks


@torch.no_grad()
def test_outside_of_a_graph_it_is_remembered() -> None:
    rotary = ROTARY["clvp"]()
    rotary(torch.randn(2, 5, 8))
    assert rotary.cached_sequence_length == 5
