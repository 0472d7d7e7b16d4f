"""Tensors of as many numbers as a size says: they are found, and one graph holds for all sizes."""

from __future__ import annotations

from pathlib import Path

import built
import pytest
import torch
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.size_ranges import methods
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed
from vgen.runtime import tensor_of_range

CPMANT = Ref(file="transformers/models/cpmant/modeling_cpmant.py", name="CpmAntModel")
LLAMA = Ref(file="transformers/models/llama/modeling_llama.py", name="LlamaModel")
TENSOR = "torch.tensor(list(range(seqlen - self.prompt_length))[::-1], device=device)"


def found(source: Source, ref: Ref) -> dict[str, int]:
    return {tree.method.name.value: len(each) for tree, each in methods(Classes(source), Trees(source), ref)}


def edited(tensor: str, tmp_path: Path) -> dict[str, int]:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", CPMANT.file, TENSOR, tensor)
    return found(folder(tmp_path / "upstream"), CPMANT)


def test_it_is_found() -> None:
    assert found(installed(), CPMANT) == {"_prepare_attention_mask": 1}
    assert found(installed(), LLAMA) == {}


@pytest.mark.parametrize(
    "tensor",
    [
        "torch.tensor(range(seqlen), device=device)",
        "torch.tensor(range(seqlen - 1, -1, -1), device=device)",
        "torch.tensor([i for i in range(input_ids.size(1))][::-1])",
        "torch.tensor(tuple(range(input_ids.shape[1] - self.prompt_length)), device=device)",
    ],
)
def test_other_forms_are_found(tensor: str, tmp_path: Path) -> None:
    assert edited(tensor, tmp_path) == {"_prepare_attention_mask": 1}


@pytest.mark.parametrize(
    "tensor",
    [
        "torch.tensor([i * i for i in range(seqlen)], device=device)",
        "torch.tensor([i for i in range(seqlen) if i % 2], device=device)",
        "torch.tensor(list(range(seqlen))[1:], device=device)",
        "torch.tensor(list(range(seqlen)), dtype=torch.float16, device=device)",
        "torch.tensor(list(range(seqlen)), requires_grad=False)",
        "torch.tensor(list(range(self.prompt_length)))",
    ],
)
def test_what_has_other_numbers_or_depends_on_no_size_is_left_alone(tensor: str, tmp_path: Path) -> None:
    assert edited(tensor, tmp_path) == {}


def test_a_name_of_the_methods_own_is_left_alone(tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    line = "        seqlen = input_ids.size(1)\n"
    edit_upstream(tmp_path / "upstream", CPMANT.file, line, f"{line}        range = reversed\n")
    assert found(folder(tmp_path / "upstream"), CPMANT) == {}


BOUNDS = [(5,), (1,), (0,), (-3,), (2, 7), (7, 2), (2, 9, 3), (9, 2, -3), (2, 9, -3), (4, 4, 1)]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_numbers_and_dtype_are_upstreams(bounds: tuple[int, ...], backwards: bool) -> None:
    """Of no numbers, too, which have the default dtype."""
    listed = list(range(*bounds))[::-1] if backwards else list(range(*bounds))
    made, expected = tensor_of_range(*bounds, backwards=backwards, device="cpu"), torch.tensor(listed, device="cpu")
    assert made.dtype == expected.dtype
    assert made.tolist() == expected.tolist()


def test_bounds_that_are_tensors_are_read_and_no_step_is_an_error() -> None:
    assert tensor_of_range(torch.tensor(3), backwards=True).tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="must not be zero"):
        tensor_of_range(1, 3, 0)


@torch.no_grad()
def test_one_graph_serves_all_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("cpmant", "CpmAntModel", tmp_path, monkeypatch)
    for length in (9, 17, 4, 33):
        ids = torch.randint(1, made.config.vocab_size, (2, length))
        ids[0, : length // 2] = 0
        ours, theirs = (model.eval()(input_ids=ids, use_cache=False) for model in (generated, upstream))
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    (count,) = runtime.counters().values()
    assert (count.calls, count.compiles, count.variants, count.fallbacks) == (4, 1, 1, {})
