"""Arguments that are views of others: one graph serves them, whatever is behind them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

import vgen.runtime as runtime
from vgen.generated import clip
from vgen.runtime.views import without_bases

SIZE = 8


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE, patch_size=4
    )
    torch.manual_seed(0)
    upstream = CLIPVisionModel(config).eval()
    with runtime.options(backend="eager", compile_mm_encoder=True):
        generated = clip.CLIPVisionModel(config).eval()
    generated.load_state_dict(upstream.state_dict())
    return upstream, generated


@torch.no_grad()
def test_one_graph_serves_views_of_anything(pair: tuple[nn.Module, nn.Module]) -> None:
    upstream, generated = pair
    frames = torch.randn(4, 5, 3, SIZE, SIZE)
    for pixels in (
        frames[:2].flatten(0, 1),
        frames[:, 0].contiguous(),
        frames.flatten(0, 1),
        frames[0],
        frames.permute(1, 0, 2, 3, 4).contiguous().flatten(0, 1)[3:],
        torch.randn(9, 3, SIZE, SIZE),
    ):
        found = generated(pixel_values=pixels).last_hidden_state
        assert torch.equal(found, upstream(pixel_values=pixels).last_hidden_state)
    (count,) = (each for each in runtime.counters().values() if each.calls)
    assert (count.compiles, count.variants) == (1, 1)
    assert not count.fallbacks


def test_what_is_exchanged_is_the_same_memory() -> None:
    frames = torch.randn(4, 5, 3)
    arguments = {"view": frames.flatten(0, 1), "own": frames, "none": None, "tuple": (frames[0],)}
    before = dict(arguments)
    without_bases(arguments)
    assert not arguments["view"]._is_view()
    assert arguments["view"].data_ptr() == frames.data_ptr()
    assert all(arguments[name] is before[name] for name in ("own", "none", "tuple"))


def test_what_is_differentiated_stays(pair: tuple[nn.Module, nn.Module]) -> None:
    frames = torch.randn(2, 2, 3, SIZE, SIZE, requires_grad=True)
    arguments = {"pixel_values": frames.flatten(0, 1)}
    before = arguments["pixel_values"]
    without_bases(arguments)
    assert arguments["pixel_values"] is before
    gradients = []
    for model in pair:
        frames.grad = None
        model(pixel_values=frames.flatten(0, 1)).last_hidden_state.square().mean().backward()
        assert frames.grad is not None
        gradients.append(frames.grad)
    assert torch.equal(*gradients)
