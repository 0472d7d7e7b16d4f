# SPDX-License-Identifier: Apache-2.0
"""What modules remember of a call by its length: one graph serves all lengths, and leaves nothing behind."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, ClvpEncoderConfig, LlamaConfig, MimiConfig, Wav2Vec2ConformerConfig
from transformers.models.clvp.modeling_clvp import ClvpRotaryPositionalEmbedding
from transformers.models.mimi.modeling_mimi import MimiEuclideanCodebook
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerRotaryPositionalEmbedding,
)

from vgen.runtime import Compiled, Contract, Region, Role, counters, options, tensor
from vgen.runtime.memos import Made

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


@torch.no_grad()
def test_what_is_made_at_first_use_is_a_variant() -> None:
    torch.manual_seed(0)
    codebook = MimiEuclideanCodebook(MimiConfig(codebook_size=8, codebook_dim=4))
    codebook.embed_sum.normal_()
    codebook.extra_cache = {}
    made = Made(codebook)
    assert made.variant() == (False, False)
    codebook.quantize(torch.randn(5, 4))
    assert made.variant() == (False, True)
    codebook.extra_cache["cpu"] = torch.zeros(1)
    assert made.variant() == (True, True)
    codebook.extra_cache = {}
    assert made.variant() == (False, True)
    # What was there before is none.
    assert Made(codebook)._yet == [(codebook, "extra_cache")]


@torch.no_grad()
def test_nothing_else_is_lazy() -> None:
    for config in (LlamaConfig, BertConfig):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        assert Made(AutoModel.from_config(config(**sizes, vocab_size=8))).variant() == ()


@torch.no_grad()
def test_a_graph_before_and_one_after_it_was_made() -> None:
    torch.manual_seed(0)
    codebook = MimiEuclideanCodebook(MimiConfig(codebook_size=8, codebook_dim=8))
    codebook.embed_sum.normal_()
    with options(backend="eager"):
        module = Looks(codebook).eval()
    for length in (5, 9, 7, 11):
        states = torch.randn(2, length, 8)
        assert torch.equal(module(states), codebook.encode(states))
        # Kept as upstream keeps it, whatever the weights are by then.
        codebook.embed_sum.normal_()
    count = counters()["made.encoder"]
    assert count.compiles == count.variants == 2
    assert not count.fallbacks


class Looks(Compiled, nn.Module):
    region = Region(
        "made.encoder",
        role=Role.ENCODER,
        contract=Contract(hidden_states=tensor("batch_size", "sequence_length", None)),
        text=True,
    )

    def __init__(self, codebook):
        super().__init__()
        self.codebook = codebook

    def forward(self, hidden_states):
        return self.region(self, hidden_states=hidden_states)

    def core(self, hidden_states):
        return self.codebook.encode(hidden_states)
