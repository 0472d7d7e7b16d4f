"""Pairs of a tiny model of upstream's and one of a package that is built for the test."""

from __future__ import annotations

import importlib
import random
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import run_python, run_vgen

import vgen.runtime as runtime
from vgen.verify.making import Tiny, make_tiny
from vgen.verify.measure import leaves


def built_pair(package: str, name: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Tiny]:
    """Upstream's model and that of a package which is built below `site` for the test, in training mode, with the same weights,
    and the tiny model by whose config they are. The backend is "eager"; image and audio encoders are compiled."""
    folder = f"built_{package}_{re.sub(r'[^0-9a-zA-Z]', '_', site.name)}"
    assert run_vgen("build", package, "--out", folder, cwd=site).returncode == 0
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    upstream_class = getattr(importlib.import_module(f"transformers.models.{package}.modeling_{package}"), name)
    made = make_tiny(upstream_class)
    torch.manual_seed(0)
    upstream = upstream_class(made.config).train()
    with runtime.options(backend="eager", compile_mm_encoder=True):
        generated = tiny.generated_class(package, folder, name)(made.config).train()
    generated.load_state_dict(upstream.state_dict())
    runtime.reset_counters()
    return upstream, generated, made


def require_served(package: str, folder: str, script: str, site: Path) -> None:
    """A script runs twice, each time in a process of its own: with "build" it compiles calls of a package, built as `folder`, ahead
    of time into a store, and with "load" it is served from there."""
    assert run_vgen("build", package, "--out", folder, cwd=site).returncode == 0
    store = site / "store"
    for step in ("build", "load"):
        done = run_python(["-c", script, step, str(store)], VGEN_STORE=str(store), PYTHONPATH=str(site))
        assert done.returncode == 0, done.stderr[-2000:]


def require_equal_steps(
    upstream: Any, generated: Any, inputs: Mapping[str, Any], result: str = "last_hidden_state", seed: int = 0
) -> dict[str, Any]:
    """A training step of both: outputs and gradients have to be equal to the last bit. Returns upstream's, by name."""
    found = []
    for model in (upstream, generated):
        model.zero_grad()
        torch.manual_seed(seed)
        random.seed(seed)
        output = model(**inputs)
        values = output[result].float()
        # In parts of the largest value: what is near a dtype's end has finite gradients then, too.
        (values / values.detach().abs().max()).square().mean().backward()
        found.append({**dict(leaves(output)), **{key: each.grad for key, each in model.named_parameters()}})
    theirs, ours = found
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[key], value, rtol=0, atol=0, equal_nan=True, msg=key)
    return theirs
