"""Hidden states and attentions that Transformers records by hooks, where regions are inside of a recorder or around it."""

from __future__ import annotations

from pathlib import Path

import built
import pytest
import tiny
import torch
import transformers

import vgen.runtime as runtime
from vgen.verify.making import make_tiny
from vgen.verify.measure import leaves


@pytest.mark.parametrize(("package", "name"), [("rf_detr", "RfDetrModel"), ("d_fine", "DFineModel")])
def test_a_model_that_does_not_record_installs_no_hooks(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backbone records for itself in every call: once more from outside, and each state would be there twice."""
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    for model in (upstream, generated):
        model.eval()
    for wanted in (False, True, False):
        ours, theirs = (
            dict(leaves(model(**made.inputs, output_hidden_states=wanted))) for model in (generated, upstream)
        )
        assert list(ours) == list(theirs)
        for where, value in theirs.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(ours[where], value), where


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_layers_inside_of_a_recorder(attention: str) -> None:
    """Hidden states are recorded outside of each layer's graph. Attentions are inside: then, and only then, it runs without."""
    made = make_tiny(transformers.PixtralVisionModel)
    made.config._attn_implementation = attention
    torch.manual_seed(0)
    upstream = transformers.PixtralVisionModel(made.config).eval()
    with runtime.options(backend="eager", compile_mm_encoder=True):
        generated = tiny.generated_class("pixtral", "vgen.generated", "PixtralVisionModel")(made.config).eval()
    generated.load_state_dict(upstream.state_dict())
    runtime.reset_counters()
    wanted = [{}, {"output_hidden_states": True}, {"output_attentions": True}, {"output_hidden_states": True}, {}]
    reasons = {}
    for each in wanted:
        before = runtime.counters().get("pixtral.encoder.block")
        ours, theirs = (dict(leaves(model(**made.inputs, **each))) for model in (generated, upstream))
        assert list(ours) == list(theirs)
        for where, value in theirs.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(ours[where], value), where
        reasons = dict(runtime.counters()["pixtral.encoder.block"].fallbacks)
        is_new = sum(reasons.values()) > (sum(before.fallbacks.values()) if before is not None else 0)
        assert is_new == ("output_attentions" in each)
    assert list(reasons) == ["a model around it records attentions inside of it"]
