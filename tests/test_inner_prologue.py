"""Prologue calls of the modules inside: they are hoisted where nothing else knows their keys, and the result is upstream's."""

from __future__ import annotations

from pathlib import Path

import built
import pytest
import torch
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.inner_prologue import Hoistable, hoistable
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed

KIMI = Ref(file="transformers/models/kimi_k25/modeling_kimi_k25.py", name="Kimi_K25VisionModel")
PADDLE = Ref(file="transformers/models/paddleocr_vl/modeling_paddleocr_vl.py", name="PaddleOCRVisionModel")


def found(source: Source, ref: Ref) -> Hoistable:
    return hoistable(Classes(source), Trees(source), ref)


def test_calls_are_hoisted_from_every_depth() -> None:
    kimi, paddle = found(installed(), KIMI), found(installed(), PADDLE)
    inner = {key: call.within for call in kimi.calls for key in call.keys if call.within}
    assert inner == dict.fromkeys(("interp_indices", "interp_weights", "frame_index"), "patch_embed.pos_emb")
    assert {call.within for call in paddle.calls} == {"vision_model.embeddings", "vision_model.encoder"}
    assert kimi.only == paddle.only == ("grid_thw",)
    assert all("self.vision_model." in call.text for call in paddle.calls if "self." in call.text)


CALL = "        hidden_states = self.patch_embed(pixel_values, grid_thw=grid_thw, **kwargs)\n"
EDITS = {
    "another grid": (CALL, CALL.replace("grid_thw=grid_thw", "grid_thw=grid_thw.flip(0)")),
    "a grid that changed": (CALL, f"        grid_thw = grid_thw[:1]\n{CALL}"),
    "only perhaps": (CALL, f"        if grid_thw is not None:\n    {CALL}"),
    "after an early end": (CALL, f"        if grid_thw is None:\n            return None\n{CALL}"),
    "not handed": (CALL, CALL.replace(", **kwargs", "")),
    "known elsewhere": ("    def forward(self, x) -> torch.Tensor:\n        return self.fc2(", "    def forward(self, x, frame_index=None) -> torch.Tensor:\n        return self.fc2("),
    "taken by a function": (CALL, f"{CALL}        get_vision_frame_index(grid_thw, **kwargs)\n"),
    "asked for here": (CALL, f'{CALL}        frames = kwargs.get("frame_index")\n'),
}  # fmt: skip
"""Edits of Kimi's vision model after which the calls inside have to stay there."""


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_not_exact_is_not_hoisted(edit: str, tmp_path: Path) -> None:
    find, replace = EDITS[edit]
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", KIMI.file, find, replace)
    calls = found(folder(tmp_path / "upstream"), KIMI).calls
    assert not any(call.within for call in calls)


@pytest.mark.parametrize(
    ("package", "name"), [("kimi_k25", "Kimi_K25VisionModel"), ("paddleocr_vl", "PaddleOCRVisionModel")]
)
def test_values_and_gradients_are_upstreams(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    grids = [[[1, 4, 4]], [[1, 4, 6], [1, 8, 4]], [[1, 2, 4], [1, 4, 4], [1, 6, 2]]]
    shape = made.inputs["pixel_values"].shape
    for grid in grids:
        grid_thw = torch.tensor(grid)
        count = int(grid_thw.prod(-1).sum())
        at = 1 if package == "paddleocr_vl" else 0
        pixels = torch.randn(*shape[:at], count, *shape[at + 1 :])
        built.require_equal_steps(upstream, generated, {"pixel_values": pixels, "grid_thw": grid_thw})
    count_of = next(each for tag, each in runtime.counters().items() if "encoder" in tag)
    assert not count_of.fallbacks
    assert count_of.compiles == count_of.variants == 1
