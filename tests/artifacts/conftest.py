"""A store with artifacts of a tiny Llama, built once, and models that are served from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from served import PROMPT, EagerCore, decode, make, served_once

import vgen.runtime as runtime
from vgen.runtime import region
from vgen.runtime.building import building


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of a forward without a cache, and of a prefill and a decode step with a static one."""
    folder = tmp_path_factory.mktemp("artifacts") / "store"
    _, model = make()
    with torch.no_grad(), building(folder):
        model(input_ids=PROMPT, use_cache=False)
        decode(model)
    assert len(list(folder.glob("*.vgenart"))) == 3
    return folder


@pytest.fixture
def served(store: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Both models; the generated one has been served from the store once."""
    monkeypatch.setenv("VGEN_STORE", str(store))
    monkeypatch.setattr(region, "CompiledCore", EagerCore)
    return served_once()


@pytest.fixture(autouse=True)
def _fresh_counters() -> None:
    runtime.reset_counters()
