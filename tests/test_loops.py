"""Methods that loop over values: the pure ones are found, others are left, and a graph computes what upstream computes."""

from __future__ import annotations

import ast
from pathlib import Path

import built
import pytest
import torch
import torch._dynamo.testing
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.loops import Loop, find
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed
from vgen.runtime import loop_over_values

SIGLIP = "transformers/models/siglip2/modeling_siglip2.py"
COSMOS = "transformers/models/cosmos3_edge/modeling_cosmos3_edge.py"
VIDEO = "transformers/models/video_llama_3/modeling_video_llama_3.py"
FOUND = {
    (SIGLIP, "Siglip2VisionEmbeddings", "resize_positional_embeddings"),
    (COSMOS, "Cosmos3EdgeVisionEmbeddings", "resize_positional_embeddings"),
    (VIDEO, "VideoLlama3VisionModel", "pixel_unshuffle"),
}


def loop_of(source: Source, file: str, name: str, method: str) -> Loop | None:
    return find(Trees(source).method(Ref(file=file, name=name), method))


def test_the_methods_that_are_found() -> None:
    source, found = installed(), set()
    trees = Trees(source)
    for file in (source.modeling_file(model) for model in source.models()):
        for definition in file.definitions.values() if ".tolist()" in file.text else ():
            for method in definition.node.body if isinstance(definition.node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef) and method.name not in ("__init__", "forward"):
                    if find(trees.method(Ref(file=file.rel, name=definition.name), method.name)) is not None:
                        found.add((file.rel, definition.name, method.name))
    assert found >= FOUND


def test_the_size_of_what_they_return() -> None:
    filled, joined = loop_of(installed(), *sorted(FOUND)[1]), loop_of(installed(), *sorted(FOUND)[2])
    assert filled is not None
    assert joined is not None
    assert [getattr(each, "value", None) for each in filled.size] == ["batch_size", "max_length", "embed_dim"]
    assert len(filled.before) == 2
    assert joined.size == (None, None)
    assert (filled.is_static, joined.is_static) == (True, False)


FILLED = "            resulted_positional_embeddings[i, height * width :] = resized_embeddings[0]\n"
EDITS = {
    "another dtype": ("            dtype=source_dtype,\n        )", "            dtype=torch.float64,\n        )"),
    "an argument changes": (FILLED, f"{FILLED}            spatial_shapes[i] = 1\n"),
    "in place": (FILLED, f"{FILLED}            positional_embeddings.mul_(2)\n"),
    "random": (FILLED, f"{FILLED}            resized_embeddings = F.dropout(resized_embeddings)\n"),
    "two ends": (FILLED, f"{FILLED}            if height > 99:\n                return positional_embeddings\n"),
}
"""Edits of Siglip2's loop after which it stays in the graph."""


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_not_known_to_be_pure_is_left(edit: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", SIGLIP, *EDITS[edit])
    source = folder(tmp_path / "upstream")
    assert loop_of(source, SIGLIP, "Siglip2VisionEmbeddings", "resize_positional_embeddings") is None


def test_a_method_that_reads_its_instance_is_left(tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit = ("            c = hidden_states.shape[-1]\n", "            c = self.config.hidden_size\n")
    edit_upstream(tmp_path / "upstream", VIDEO, *edit)
    assert loop_of(folder(tmp_path / "upstream"), VIDEO, "VideoLlama3VisionModel", "pixel_unshuffle") is None


def repeated(rows: torch.Tensor, counts: torch.Tensor, times: int) -> torch.Tensor:
    return torch.cat([rows[index : index + 1].repeat(count, 1) * times for index, count in enumerate(counts.tolist())])


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_graph_serves_all_values(backend: str) -> None:
    def run(rows: torch.Tensor, counts: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        return loop_over_values(f"{__name__}:repeated", rows, counts, added.shape[1], size=(None, None)) + added

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(run, backend=counter, fullgraph=True, dynamic=True)
    for counts in ([2, 3], [4, 1, 2], [3, 3, 3, 3]):
        rows, added = torch.randn(len(counts), 6, requires_grad=True), torch.randn(sum(counts), 6)
        results = []
        for function in (run, compiled):
            out = function(rows, torch.tensor(counts), added)
            results.append((out, *torch.autograd.grad(out.square().sum(), rows)))
        for theirs, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("package", "name"), [("siglip2", "Siglip2VisionModel"), ("cosmos3_edge", "Cosmos3EdgeVisionModel")]
)
def test_values_and_gradients_are_upstreams(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    for grid in ([(4, 4), (2, 6)], [(2, 2), (4, 2), (6, 2)]):
        inputs = images(package, grid, made.inputs["pixel_values"].shape[-1])
        built.require_equal_steps(upstream, generated, inputs)
    count = next(each for tag, each in runtime.counters().items() if "encoder" in tag)
    assert not count.fallbacks
    assert count.compiles == count.variants == 1


def images(package: str, grid: list[tuple[int, int]], width: int) -> dict[str, torch.Tensor]:
    """The inputs for images of so many patches."""
    if package == "cosmos3_edge":
        grid_thw = torch.tensor([(1, *each) for each in grid])
        return {"pixel_values": torch.randn(int(grid_thw.prod(-1).sum()), width), "grid_thw": grid_thw}
    shapes, most = torch.tensor(grid), 16
    mask = (torch.arange(most) < shapes.prod(-1)[:, None]).long()
    pixels = torch.randn(len(grid), most, width)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}
