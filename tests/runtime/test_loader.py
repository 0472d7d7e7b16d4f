# SPDX-License-Identifier: Apache-2.0
"""Which class a checkpoint is loaded into, and which one a child is made of."""

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModel, GPT2Config, LlamaConfig, Qwen2Config
from transformers.models.llama import modeling_llama

from vgen.runtime import ArchitectureError, ModelNotBuiltError, Options, child_from_config, load, options


@pytest.fixture
def package(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of generated packages that holds llama alone."""
    root, llama = ModuleType("vgen_tests_generated"), ModuleType("vgen_tests_generated.llama")
    root.__path__ = []
    llama.LlamaModel, llama.LlamaForCausalLM = tiny.LlamaModel, tiny.LlamaForCausalLM  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, root.__name__, root)
    monkeypatch.setitem(sys.modules, llama.__name__, llama)
    return root.__name__


@pytest.fixture
def checkpoint(tiny: Any, tmp_path: Path) -> Path:
    modeling_llama.LlamaForCausalLM(tiny.llama_config()).save_pretrained(tmp_path)
    return tmp_path


def test_by_architecture(tiny: Any, checkpoint: Path, package: str) -> None:
    model = load(checkpoint, generated=package, backend="eager", dtype="bfloat16")
    assert type(model) is tiny.LlamaForCausalLM
    assert model.vgen_options == Options(backend="eager")
    assert model.dtype == torch.bfloat16


def test_by_environment(tiny: Any, checkpoint: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGEN_GENERATED", package)
    assert type(load(checkpoint, generated="not_there", compile=False)) is tiny.LlamaForCausalLM


def test_without_architectures(tiny: Any, tmp_path: Path, package: str) -> None:
    tiny.llama_config().save_pretrained(tmp_path)
    modeling_llama.LlamaForCausalLM(tiny.llama_config()).save_pretrained(tmp_path / "weights")
    config = LlamaConfig.from_pretrained(tmp_path)
    model = load(tmp_path / "weights", generated=package, config=config)
    assert type(model) is tiny.LlamaForCausalLM


def test_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    monkeypatch.setenv("VGEN_GENERATED", "elsewhere")
    with pytest.raises(ModelNotBuiltError) as error:
        load(tmp_path, generated="mine")
    for part in (
        "mine.gpt2 (generated=",
        "elsewhere.gpt2 (VGEN_GENERATED",
        "vgen.generated.gpt2 (default",
        "`vgen build gpt2`",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_architecture(tmp_path: Path) -> None:
    GPT2Config(architectures=["OwnModel"]).save_pretrained(tmp_path)
    with pytest.raises(ArchitectureError, match="OwnModel"):
        load(tmp_path)


def test_a_child_of_a_generated_class(tiny: Any, package: str) -> None:
    with options(backend="eager"):
        child = child_from_config(AutoModel, tiny.llama_config(), package=f"{package}.parent", dtype=torch.bfloat16)
    assert type(child) is tiny.LlamaModel
    assert child.dtype == torch.bfloat16
    assert child.vgen_options == Options(backend="eager")
    assert AutoModel.from_config(tiny.llama_config()).__class__ is modeling_llama.LlamaModel


def test_a_child_that_is_not_built(package: str, caplog: pytest.LogCaptureFixture) -> None:
    config = Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=64
    )
    with caplog.at_level(logging.WARNING, "vgen.runtime"):
        for _ in range(2):
            child = child_from_config(AutoModel, config, package=f"{package}.parent")
    assert type(child).__module__ == "transformers.models.qwen2.modeling_qwen2"
    (message,) = caplog.messages
    assert "runs Transformers' own Qwen2Model" in message
    assert "`vgen build qwen2`" in message


def test_a_child_that_upstream_does_not_know(package: str) -> None:
    class Auto:
        _model_mapping: ClassVar[dict[type, type]] = {}

        @classmethod
        def from_config(cls, config: object, **kwargs: object) -> object:
            return config, kwargs

    # Left to upstream, with the arguments as they are.
    assert child_from_config(Auto, "config", package=f"{package}.parent", a=1) == ("config", {"a": 1})
