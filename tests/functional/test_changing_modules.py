"""Modules that change themselves while they run: what is captured before and after, and that results stay upstream's to the bit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import built
import pytest
import torch
from transformers.models.qwen3_vl import modeling_qwen3_vl
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

import vgen.runtime as runtime
from vgen.generated.qwen3_vl import Qwen3VLVisionModel
from vgen.runtime.variants import MAX_RETRIES

# By package: a model whose tables of positions grow.
GROWING = {"xglm": "XGLMModel", "m2m_100": "M2M100Model"}


def growing(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, int]:
    upstream, generated, made = built.built_pair(package, GROWING[package], tmp_path, monkeypatch)
    return upstream.eval(), generated.eval(), made.config.max_position_embeddings


def counted() -> Any:
    (count,) = runtime.counters().values()
    return count


def inputs_for(model: Any, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, model.config.vocab_size, (2, length))
    return {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}


def require_equal(upstream: Any, generated: Any, length: int) -> None:
    inputs = inputs_for(upstream, length)
    with torch.no_grad():
        ours, theirs = generated(**inputs), upstream(**inputs)
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state), length
    for name, buffer in upstream.named_buffers():
        assert torch.equal(generated.get_buffer(name), buffer), name


@pytest.mark.parametrize("package", GROWING)
def test_what_grew_is_captured_again(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, most = growing(package, tmp_path, monkeypatch)
    for length, compiles, fallbacks in (
        (5, 1, 0),
        (9, 1, 0),
        # Too long for the table: the call makes it longer, uncompiled.
        (most + 20, 1, 1),
        (most + 20, 2, 1),
        (7, 2, 1),
        (most + 10, 2, 1),
        (33, 2, 1),
    ):
        require_equal(upstream, generated, length)
        for tag, count in runtime.counters().items():
            assert (count.compiles, sum(count.fallbacks.values())) == (compiles, fallbacks), (tag, length)
    for count in runtime.counters().values():
        assert count.variants == 1
        assert all("the call changed its modules" in reason for reason in count.fallbacks)


def test_it_is_tried_again_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, most = growing("xglm", tmp_path, monkeypatch)
    for step in range(1, MAX_RETRIES + 3):
        require_equal(upstream, generated, most + 20 * step)
    require_equal(upstream, generated, 5)
    count = counted()
    again = {reason: times for reason, times in count.fallbacks.items() if "the call changed its modules" in reason}
    assert list(again.values()) == [MAX_RETRIES]
    # From then on uncompiled.
    assert sum(count.fallbacks.values()) == count.calls == MAX_RETRIES + 3


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_start_anew(copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, most = growing("xglm", tmp_path, monkeypatch)
    require_equal(upstream, generated, 5)
    before = copied(generated)
    require_equal(upstream, generated, most + 20)
    after = copied(generated)
    for model in (generated, after):
        runtime.reset_counters()
        for length in (most + 20, 6):
            require_equal(upstream, model, length)
        assert (counted().compiles, counted().fallbacks) == (1, {})
    # The table of a copy that was made before is as short as it was.
    runtime.reset_counters()
    for length in (6, most + 20, most + 15):
        require_equal(upstream if length > 6 else before, before, length)
    assert sum(counted().fallbacks.values()) == 1


def test_gradients_after_it_grew_are_upstreams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, most = growing("xglm", tmp_path, monkeypatch)
    for length in (5, most + 20, most + 10, 6):
        built.require_equal_steps(upstream, generated, inputs_for(upstream, length))
    count = counted()
    assert (count.compiles, sum(count.fallbacks.values())) == (2, 1)


def test_what_fails_and_changes_nothing_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("reformer", "ReformerModel", tmp_path, monkeypatch)
    upstream.eval(), generated.eval()
    with torch.no_grad():
        for _ in range(3):
            ours, theirs = generated(**made.inputs), upstream(**made.inputs)
            assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    count = counted()
    assert count.fallbacks == {"it can't be compiled: Unsupported: Data-dependent branching": 3}
    assert count.variants == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_buffer_that_a_forward_moves_is_captured(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CTRL sets its table of positions in each forward, to itself where it needn't be moved."""
    upstream, generated, _ = built.built_pair("ctrl", "CTRLModel", tmp_path, monkeypatch)
    upstream.to(dtype).eval(), generated.to(dtype).eval()
    table = generated.pos_encoding
    for length in (5, 9, 5):
        require_equal(upstream, generated, length)
    assert generated.pos_encoding is table
    assert "pos_encoding" not in generated.state_dict()
    for model in (copy.deepcopy(generated), pickle.loads(pickle.dumps(generated))):
        require_equal(upstream, model, 7)
        assert "pos_encoding" not in model.state_dict()
        assert "pos_encoding" in dict(model.named_buffers())
    built.require_equal_steps(upstream, generated, inputs_for(upstream, 6))
    assert not counted().fallbacks
    assert counted().compiles == 4


def test_a_table_of_another_dtype_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, _ = built.built_pair("ctrl", "CTRLModel", tmp_path, monkeypatch)
    for model in (upstream.eval(), generated.eval()):
        model.pos_encoding = model.pos_encoding.double()
    for length in (5, 9, 5):
        require_equal(upstream, generated, length)
        assert generated.pos_encoding.dtype is torch.float32
    assert not counted().fallbacks


@torch.no_grad()
def test_what_a_prologue_reads_of_a_config_may_change() -> None:
    """Grids are laid out by the config's merge size, and what was computed of a grid before is kept."""
    pixels, grid = torch.randn(48, 3 * 2 * 16 * 16), torch.tensor([[1, 8, 4], [1, 4, 4]])
    fields = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3VLVisionConfig(**fields, deepstack_visual_indexes=[0], num_position_embeddings=16)
    upstream = modeling_qwen3_vl.Qwen3VLVisionModel(config).eval()
    with runtime.options(backend="eager", compile_mm_encoder=True):
        generated = Qwen3VLVisionModel(copy.deepcopy(config)).eval()
    generated.load_state_dict(upstream.state_dict())
    for size in (2, 1, 2):
        upstream.config.spatial_merge_size = generated.config.spatial_merge_size = size
        theirs, ours = (model(pixels, grid_thw=grid).last_hidden_state for model in (upstream, generated))
        assert torch.equal(ours, theirs)
    assert not counted().fallbacks
