"""Arguments that are only asked whether they hold anything: a region asks once, and what else reads one keeps it as it is."""

from __future__ import annotations

from pathlib import Path

import built
import pytest
import torch
from conftest import run_vgen
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.analyze.truths import find, truths
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed

FILE = "transformers/models/ernie4_5_vl_moe/modeling_ernie4_5_vl_moe.py"
CHAIN = ("Ernie4_5_VLMoeTextModel", "Ernie4_5_VLMoeDecoderLayer", "Ernie4_5_VLMoeMoeBlock")
NAME = "moe_mm_token_type_ids"


def found(source: Source, name: str, file: str = FILE) -> tuple[str, ...]:
    return truths(Classes(source), Trees(source), Ref(file=file, name=name))


@pytest.mark.parametrize("name", CHAIN)
def test_it_is_followed_down_to_the_branch(name: str) -> None:
    assert found(installed(), name) == (NAME,)


def test_what_is_read_otherwise_is_left_alone() -> None:
    reformer = "transformers/models/reformer/modeling_reformer.py"
    assert found(installed(), "ReformerModel", reformer) == ()
    assert not find(Trees(installed()).method(Ref(file=reformer, name="LSHSelfAttention"), "forward"))
    # A mask of its own, not an argument.
    qwen3_omni = "transformers/models/qwen3_omni_moe/modeling_qwen3_omni_moe.py"
    talker = Ref(file=qwen3_omni, name="Qwen3OmniMoeForConditionalGeneration")
    assert not find(Trees(installed()).method(talker, "_get_talker_user_parts"))


EDITS = {
    "read before the branch": ("        # (Optional) shared experts\n        if self", f"        kept = {NAME}\n        if self"),
    "read after the branch": ("        return final_hidden_states, router_logits\n", f"        return final_hidden_states, router_logits, {NAME}\n"),
    "another test": (f"        if {NAME} is not None and {NAME}.any():", f"        if {NAME} is None or {NAME}.any():"),
    "changed on the way": ("            hidden_states, _ = self.mlp(hidden_states, moe_mm_token_type_ids)\n", "            hidden_states, _ = self.mlp(hidden_states, moe_mm_token_type_ids + 1)\n"),
    "handed to a function": ("        hidden_states = inputs_embeds\n\n        # create", f"        hidden_states = torch.add(inputs_embeds, {NAME})\n\n        # create"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_another_use_on_the_way_rules_it_out(edit: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", FILE, *EDITS[edit])
    assert found(folder(tmp_path / "upstream"), CHAIN[0]) == ()


def test_values_and_gradients_are_upstreams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("ernie4_5_vl_moe", CHAIN[0], tmp_path, monkeypatch)
    for types in (None, [0] * 7, [0, 1, 1, 2, 0, 0, 0], [1] * 7, [0] * 6 + [1]):
        inputs = {"input_ids": torch.randint(3, made.config.vocab_size, (2, 7))}
        if types is not None:
            inputs[NAME] = torch.tensor([types, types], dtype=torch.int)
        built.require_equal_steps(upstream, generated, inputs)
        # The caller's own is as it was.
        assert types is None or inputs[NAME].tolist() == [types, types]
    count = next(iter(runtime.counters().values()))
    assert not count.fallbacks
    assert count.compiles == count.variants == 2


def test_a_graph_of_somebody_elses_asks_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("ernie4_5_vl_moe", CHAIN[0], tmp_path, monkeypatch)
    compiled = torch.compile(generated.eval(), backend="eager")
    ids = torch.randint(3, made.config.vocab_size, (2, 7))
    for types in ([0, 1, 1, 2, 0, 0, 0], [0] * 7):
        inputs = {"input_ids": ids, NAME: torch.tensor([types, types], dtype=torch.int)}
        with torch.no_grad():
            theirs, ours = upstream.eval()(**inputs), compiled(**inputs)
        assert torch.equal(theirs.last_hidden_state, ours.last_hidden_state)
    assert not any(count.graphs for count in runtime.counters().values())


def test_the_region_is_told(tmp_path: Path) -> None:
    assert run_vgen("build", "ernie4_5_vl_moe", "--out", "made", cwd=tmp_path).returncode == 0
    text = (tmp_path / "made" / "ernie4_5_vl_moe" / "modeling_ernie4_5_vl_moe.py").read_text()
    assert f'truths=("{NAME}",)' in text
    assert f'holds_any({NAME}, "{NAME}")' in text
