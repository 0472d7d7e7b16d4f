# SPDX-License-Identifier: Apache-2.0
"""Which class a checkpoint is loaded into, and which one a child is made of."""

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModel, GPT2Config, LlamaConfig, PreTrainedConfig
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
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64)
    with caplog.at_level(logging.WARNING, "vgen.runtime"):
        for _ in range(2):
            child = child_from_config(AutoModel, config, package=f"{package}.parent")
    assert type(child).__module__ == "transformers.models.gpt2.modeling_gpt2"
    (message,) = (record.message for record in caplog.records if record.name == "vgen.runtime")
    assert "runs Transformers' own GPT2Model" in message
    assert "`vgen build gpt2`" in message


def test_a_child_that_upstream_does_not_know(package: str) -> None:
    class Auto:
        _model_mapping: ClassVar[dict[type, type]] = {}

        @classmethod
        def from_config(cls, config: object, **kwargs: object) -> object:
            return config, kwargs

    # Left to upstream, with the arguments as they are.
    assert child_from_config(Auto, "config", package=f"{package}.parent", a=1) == ("config", {"a": 1})


@pytest.fixture
def gguf(tiny: Any, tmp_path: Path) -> tuple[Path, Any]:
    """A tiny Llama's weights as a GGUF file, and the model. Its heads are one, which llama.cpp's order of rows leaves as it is."""
    from gguf import GGUFWriter

    torch.manual_seed(0)
    config = tiny.llama_config(num_attention_heads=1, num_key_value_heads=1, head_dim=2, tie_word_embeddings=False)
    upstream = modeling_llama.LlamaForCausalLM(config).eval()
    writer = GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = {"embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk"}
    names |= {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {
        "self_attn.o_proj": "attn_output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    for name, weight in upstream.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name.removeprefix("model."), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf", upstream


def test_a_gguf_config_is_read_once(
    gguf: tuple[Path, Any], tiny: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, upstream = gguf
    read: list[str] = []
    original = LlamaConfig._get_config_dict.__func__  # type: ignore[attr-defined]

    def counting(cls: type, name: Any, **kwargs: Any) -> Any:
        read.append(kwargs.get("gguf_file", ""))
        return original(cls, name, **kwargs)

    monkeypatch.setattr(PreTrainedConfig, "_get_config_dict", classmethod(counting))
    arguments: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32, "attn_implementation": "eager"}
    model = load(path.parent, generated=package, compile=False, use_cache=False, **arguments)
    assert type(model) is tiny.LlamaForCausalLM
    assert read == [path.name]
    direct = tiny.LlamaForCausalLM.from_pretrained(path.parent, use_cache=False, **arguments)
    assert len(read) == 2
    assert model.config.to_dict() == direct.config.to_dict()
    assert (model.config.use_cache, model.config._attn_implementation, model.dtype) == (False, "eager", torch.float32)
    for name, weight in direct.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    for name, weight in upstream.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
