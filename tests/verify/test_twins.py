"""Copies of a model that `vgen verify` runs in other settings."""

from __future__ import annotations

from typing import Any

import torch
from transformers import RecurrentGemmaForCausalLM

from vgen.verify.cases import Instance
from vgen.verify.making import make_tiny
from vgen.verify.runs import twin


def states_of(model: Any) -> list[torch.Tensor]:
    return [vars(part)["recurrent_states"] for part in model.modules() if "recurrent_states" in vars(part)]


def test_a_model_that_holds_results_of_training_is_copied() -> None:
    model = make_tiny(RecurrentGemmaForCausalLM).model.train()
    model(torch.full((1, 5), 3), use_cache=False)
    copied = twin(model, Instance.EAGER_ATTENTION)
    states, own = states_of(model), states_of(copied)
    assert states
    assert all(each.requires_grad for each in states)
    assert not any(each.requires_grad for each in own)
    assert all(map(torch.equal, own, states))
