"""When `generate`'s loop may run a step ahead, and that upstream's own class isn't touched. What it computes: test_gpu.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import config
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LogitsProcessor, StoppingCriteria
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.generation import utils
from transformers.generation.logits_process import MinLengthLogitsProcessor
from transformers.generation.stopping_criteria import MaxLengthCriteria

from vgen.runtime import AsUpstream
from vgen.runtime.generation import _deferring, run_ahead

SAMPLE = utils.GenerationMixin._sample


class Own(StoppingCriteria, LogitsProcessor):
    """A user's, which may count its calls."""


def arguments(**changes: Any) -> dict[str, Any]:
    return {
        "generation_config": GenerationConfig(),
        "logits_processor": [MinLengthLogitsProcessor(3, 2, device="cpu")],
        "stopping_criteria": [MaxLengthCriteria(20)],
        "synced_gpus": False,
    } | changes


def test_greedy_steps_run_ahead() -> None:
    assert run_ahead(SAMPLE, arguments()) is _deferring()


@pytest.mark.parametrize(
    "changes",
    [
        {"generation_config": GenerationConfig(do_sample=True)},
        {"synced_gpus": True},
        {"stopping_criteria": [MaxLengthCriteria(20), Own()]},
        {"logits_processor": [Own()]},
    ],
    ids=["random numbers", "several processes", "own criterion", "own processor"],
)
def test_what_could_notice_a_surplus_step_waits(changes: dict[str, Any]) -> None:
    assert run_ahead(SAMPLE, arguments(**changes)) is SAMPLE


def test_another_loop_stays() -> None:
    def own(self: Any, *_: Any, **__: Any) -> None:
        """A model's own loop."""

    assert run_ahead(own, arguments()) is own


def test_only_static_caches_on_a_gpu() -> None:
    scope = _deferring().__globals__
    is_supported = scope["DeferredStopCheck"].is_supported
    gpu = torch.device("cuda")
    text = config("llama")
    static = StaticCache(text, 8)
    assert is_supported(gpu, static, False, False)
    assert not is_supported(torch.device("cpu"), static, False, False)
    assert not is_supported(gpu, DynamicCache(), False, False)
    assert not is_supported(gpu, static, True, False)
    assert not is_supported(gpu, static, False, True)
    assert not utils.DeferredStopCheck.is_supported(gpu, static, False, False)
    assert SAMPLE.__globals__["DeferredStopCheck"] is utils.DeferredStopCheck


class Masks(nn.Module):
    """Upstream's part of a model that makes the masks of `generate` in its own way."""

    @staticmethod
    def create_masks_for_generate(states: torch.Tensor) -> torch.Tensor:
        return states > 0


class Asks(AsUpstream, Masks):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.create_masks_for_generate(states)  # type: ignore[no-any-return]


class AsksFor(AsUpstream, nn.Module):
    def forward(self, config: LlamaConfig, states: torch.Tensor) -> Any:
        return self.create_masks_for_generate(
            config=config, inputs_embeds=states, attention_mask=None, past_key_values=None, position_ids=None
        )


def test_masks_are_asked_for_in_a_graph_too() -> None:
    states = torch.randn(2, 5, 32)
    own = torch.compile(Asks(), backend="eager", fullgraph=True)
    assert torch.equal(own(states), states > 0)
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, attn_implementation="eager")
    model = AsksFor()
    expected = model(config, states)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(config, states), expected)
