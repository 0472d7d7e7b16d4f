# SPDX-License-Identifier: Apache-2.0
"""What a region's modules are before and after a call, and what a failed capture may not leave behind."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._guards import detect_fake_mode
from transformers import CTRLConfig, CTRLModel, LlamaConfig, LlamaModel
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping
from transformers.models.clvp.configuration_clvp import ClvpEncoderConfig
from transformers.models.clvp.modeling_clvp import ClvpRotaryPositionalEmbedding
from transformers.models.speecht5.modeling_speecht5 import SpeechT5SinusoidalPositionalEmbedding

from vgen.runtime import Compiled, Contract, Region, Role, counters, options, tensor
from vgen.runtime.preparing import prepare
from vgen.runtime.state import Held, outline

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


def table() -> nn.Module:
    return SpeechT5SinusoidalPositionalEmbedding(8, 16, 1)


def test_calls_that_change_nothing_leave_the_outline() -> None:
    model = LlamaModel(LlamaConfig(**LLAMA)).eval()
    before = outline(model)
    with torch.no_grad():
        model(torch.arange(6)[None])
    assert outline(model) == before
    hash(before)


def test_what_is_remembered_of_a_call_is_no_change() -> None:
    rotary = ClvpRotaryPositionalEmbedding(ClvpEncoderConfig())
    before = outline(rotary)
    rotary(torch.randn(1, 5, 8))
    assert outline(rotary) == before


def test_a_longer_table_is_a_change() -> None:
    part = table()
    before = outline(part)
    part(torch.ones(1, 4, dtype=torch.long))
    assert outline(part) == before
    part(torch.ones(1, 40, dtype=torch.long))
    assert outline(part) != before


CHANGES = {
    "another module": lambda model: setattr(model.layers[0], "mlp", nn.Identity()),
    "a hook": lambda model: model.norm.register_forward_hook(lambda *_: None),
    "a flag": lambda model: setattr(model.layers[1].self_attn, "is_causal", False),
    "an attribute": lambda model: setattr(model, "table", torch.zeros(2)),
    "a dtype": lambda model: model.norm.half(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change: str) -> None:
    model = LlamaModel(LlamaConfig(**LLAMA))
    before = outline(model)
    CHANGES[change](model)
    assert outline(model) != before


def test_what_an_object_has_cached_is_a_change() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mapping = ChameleonImageVocabularyMapping({"<image>": 1, "IMGIMGAZ": 2, "IMGIMGBZ": 3})

    part = Maps()
    before = outline(part)
    assert part.mapping.img2bpe_mapping_tensor.tolist() == [2, 3]
    assert outline(part) != before


class Adds(Compiled, nn.Module):
    region = Region(
        "state.encoder",
        role=Role.ENCODER,
        contract=Contract(hidden_states=tensor("batch_size", None)),
        text=True,
    )

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Buffer(torch.arange(4.0), persistent=False)
        self.inner = nn.Linear(4, 4)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.region(self, hidden_states=hidden_states)  # type: ignore[no-any-return]

    def core(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden_states + self.table)  # type: ignore[no-any-return]


@torch.no_grad()
def test_what_a_failed_capture_left_is_put_back() -> None:
    def leaves_fakes(_: Any, inputs: list[torch.Tensor]) -> Any:
        mode = detect_fake_mode(inputs) or torch._guards.TracingContext.get().fake_mode
        assert mode is not None
        module.table = mode.from_tensor(torch.zeros(4))
        module.inner.scratch = mode.from_tensor(torch.zeros(4))
        raise NotImplementedError("no such backend")

    with options(backend=leaves_fakes):
        module = Adds().eval()
    states = torch.randn(2, 4)
    held, expected = module.table, module.core(states)
    assert torch.equal(module(states), expected)
    assert module.table is held
    assert not hasattr(module.inner, "scratch")
    assert sum(counters()["state.encoder"].fallbacks.values()) == 1


def test_what_else_changed_stays() -> None:
    """A call in another thread may have made a table longer meanwhile."""
    part = table()
    held = Held(part)
    part(torch.ones(1, 40, dtype=torch.long))
    longer = part.weights
    held.put_back()
    assert part.weights is longer


def test_buffers_that_methods_set_are_plain_tensors_after() -> None:
    model = CTRLModel(CTRLConfig(n_embd=16, n_layer=1, n_head=2, dff=16, vocab_size=32, n_positions=8))
    before = model.pos_encoding
    assert isinstance(before, nn.Buffer)
    prepare(model)
    assert model.pos_encoding is before
    assert not isinstance(before, nn.Buffer)
    assert "pos_encoding" not in model.state_dict()
    # The same, set anew as upstream does.
    model.pos_encoding = model.pos_encoding.to(torch.float64)
    assert "pos_encoding" in dict(model.named_buffers())
    assert "pos_encoding" not in model.state_dict()


def test_other_buffers_stay_marked() -> None:
    module = Adds()
    prepare(module)
    assert isinstance(module.table, nn.Buffer)
