"""Encoders of no image at all: what upstream makes of it, be it an error."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import vgen.runtime as runtime
from vgen.verify.making import make_tiny

ENCODERS = {
    "clip": "CLIPVisionModel",
    "internvl": "InternVLVisionModel",
    "pixtral": "PixtralVisionModel",
    "qwen2_5_vl": "Qwen2_5_VisionTransformerPretrainedModel",
    "qwen2_vl": "Qwen2VisionTransformerPretrainedModel",
    "siglip": "SiglipVisionModel",
    "whisper": "WhisperEncoder",
}


def outcome(model: Any, inputs: dict[str, Any]) -> Any:
    try:
        with torch.no_grad():
            return model(**inputs).last_hidden_state
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("package", ENCODERS)
def test_no_images(package: str) -> None:
    """Before any other call, and after one that compiled."""
    ours = vars(importlib.import_module(f"vgen.generated.{package}.modeling_{package}"))[ENCODERS[package]]
    upstream_class: Any = next(each for each in ours.__mro__ if each.__module__.startswith("transformers.models."))
    made = make_tiny(upstream_class)
    torch.manual_seed(0)
    upstream = upstream_class(made.config).eval()
    with runtime.options(backend="eager", compile_mm_encoder=True):
        models = [ours(made.config).eval() for _ in range(2)]
    empty = {name: value[:0] if isinstance(value, torch.Tensor) else value for name, value in made.inputs.items()}
    expected = outcome(upstream, empty)
    for warm, model in enumerate(models):
        model.load_state_dict(upstream.state_dict())
        if warm:
            assert torch.equal(outcome(model, made.inputs), outcome(upstream, made.inputs))
        found = outcome(model, empty)
        if isinstance(expected, torch.Tensor):
            assert isinstance(found, torch.Tensor), found
            assert torch.equal(found, expected)
        else:
            assert found is expected
