"""Divisions of sizes: they are found where the quotient is used as a size, and a graph computes what upstream computes."""

from __future__ import annotations

import ast
from pathlib import Path

import built
import pytest
import torch
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.divisions import find
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed
from vgen.runtime import divide_size

LED = Ref(file="transformers/models/led/modeling_led.py", name="LEDEncoderSelfAttention")
LONGFORMER = Ref(file="transformers/models/longformer/modeling_longformer.py", name="LongformerSelfAttention")
METHODS = {"_chunk": 1, "_sliding_chunks_query_key_matmul": 1, "_sliding_chunks_matmul_attn_probs_value": 2}


def counts(source: Source, ref: Ref) -> dict[str, int]:
    node = source.definition(ref).node
    assert isinstance(node, ast.ClassDef)
    methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
    trees = Trees(source)
    return {name: count for name in methods if (count := len(find(trees.method(ref, name))))}


@pytest.mark.parametrize("ref", [LED, LONGFORMER], ids=str)
def test_every_division_of_a_size_is_found(ref: Ref) -> None:
    assert counts(installed(), ref) == METHODS


def test_tensors_are_left_alone() -> None:
    detr = Ref(file="transformers/models/deformable_detr/modeling_deformable_detr.py", name="DeformableDetrEncoder")
    wav2vec2 = Ref(file="transformers/models/wav2vec2/modeling_wav2vec2.py", name="Wav2Vec2PreTrainedModel")
    assert counts(installed(), detr) == counts(installed(), wav2vec2) == {}


EDITS = {
    "used as a tensor": ("        # matrix multiplication\n", "        kept = chunks_count.float()\n        # matrix multiplication\n"),
    "not a size": ("        batch_size, seq_len, num_heads, head_dim = query.size()\n", "        batch_size, seq_len, num_heads, head_dim = query.size()\n        seq_len = query.sum()\n"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_not_known_to_be_a_size_is_left(edit: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", LED.file, *EDITS[edit])
    assert "_sliding_chunks_query_key_matmul" not in counts(folder(tmp_path / "upstream"), LED)


def test_outside_of_a_graph_it_is_upstreams() -> None:
    found = divide_size(7, 2, rounding_mode="trunc")
    assert isinstance(found, torch.Tensor)
    assert found.equal(torch.div(7, 2, rounding_mode="trunc"))


@pytest.mark.parametrize(("package", "name"), [("led", "LEDModel"), ("longformer", "LongformerModel")])
def test_values_and_gradients_are_upstreams(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    window = made.config.attention_window
    window = window if isinstance(window, int) else window[0]
    # One window alone has a graph of its own.
    for length in (2 * window + 1, 5 * window, window // 2, window - 1):
        ids = torch.randint(3, made.config.vocab_size, (2, length))
        built.require_equal_steps(upstream, generated, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    count = next(each for tag, each in runtime.counters().items() if "encoder" in tag)
    assert not count.fallbacks
    assert count.compiles == count.variants == 2
