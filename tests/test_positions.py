"""Positions that run through: they are known where masks are made of them alone, and a graph makes no mask that eager doesn't make."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import built
import pytest
import torch
from transformers import DynamicCache, masking_utils
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.model import analyze
from vgen.codegen.analyze.positions import of_class
from vgen.codegen.facts import MaskPositions, Ref
from vgen.codegen.plan import Granularity
from vgen.codegen.planning import make_plan
from vgen.codegen.source import Source, folder, installed
from vgen.runtime import compiler
from vgen.runtime.positions import are_plain

LLAMA = "transformers/models/llama/modeling_llama.py"
OWN = MaskPositions(are_made=True, own=True)


def found(source: Source, model: str, name: str) -> MaskPositions | None:
    return of_class(Classes(source), Ref(file=f"transformers/models/{model}/modeling_{model}.py", name=name))


@pytest.mark.parametrize(
    ("model", "name", "expected"),
    [
        ("llama", "LlamaModel", OWN),
        ("mistral", "MistralModel", OWN),  # One of two functions.
        ("gemma3", "Gemma3TextModel", OWN),  # A dictionary of arguments, copied.
        ("beam", "BeamModel", OWN),  # In functions that are called later.
        ("whisper", "WhisperDecoder", OWN),
        ("qwen2_5_vl", "Qwen2_5_VLTextModel", MaskPositions(are_made=True, first_of_four=True)),
        ("qwen3_vl", "Qwen3VLTextModel", MaskPositions(are_made=True, own=True, first_of_four=True)),
    ],
)
def test_positions_that_masks_are_made_of(model: str, name: str, expected: MaskPositions) -> None:
    assert found(installed(), model, name) == expected


@pytest.mark.parametrize(
    ("model", "name"), [("afmoe", "AfmoeModel"), ("gpt_oss", "GptOssModel"), ("bart", "BartDecoder")]
)
def test_masks_of_no_positions(model: str, name: str) -> None:
    assert found(installed(), model, name) == MaskPositions()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("csm", "CsmDepthDecoderModel"),  # A position for each codebook.
        ("gemma3", "Gemma3Model"),  # By a function that is handed the arguments.
        ("hunyuan_vl", "HunYuanVLTextModel"),  # Another row than the first of four.
        ("idefics", "IdeficsModel"),  # Counted from the mask.
    ],
)
def test_other_positions_are_left_alone(model: str, name: str) -> None:
    assert found(installed(), model, name) is None


RANGE = "            position_ids = position_ids.unsqueeze(0)\n\n        causal_mask"
GIVEN = "            position_ids=position_ids,\n        )\n\n        hidden_states = inputs_embeds"
EDITS = {
    "a range of every second": (RANGE, RANGE.replace("unsqueeze(0)", "unsqueeze(0) * 2")),
    "more than rows": (RANGE, RANGE.replace("unsqueeze(0)", "unsqueeze(0).unsqueeze(0)")),
    "rounded": (RANGE, RANGE.replace("unsqueeze(0)", "unsqueeze(0).to(torch.bfloat16)")),
    "every second": (GIVEN, GIVEN.replace("=position_ids", "=position_ids[:, ::2]")),
    "a number for each token": (GIVEN, GIVEN.replace("=position_ids", "=position_ids + attention_mask")),
    "a cast that rounds": (GIVEN, GIVEN.replace("=position_ids", "=position_ids.half()")),
    "one long row": (GIVEN, GIVEN.replace("=position_ids", "=position_ids.view(1, -1)")),
    "another argument": (GIVEN, GIVEN.replace("=position_ids", "=kwargs.get('text_positions')")),
    "unknown arguments": (GIVEN, GIVEN.replace("position_ids=position_ids", "**self.more")),
    "changed in a loop": (RANGE, RANGE.replace("        causal_mask", "        for each in self.layers:\n            position_ids = each(position_ids)\n        causal_mask")),
    "given another value in a test": (RANGE, RANGE.replace("        causal_mask", "        if (position_ids := inputs_embeds) is not None:\n            pass\n        causal_mask")),
    "masks made by what is handed the function": (RANGE, RANGE.replace("        causal_mask", "        other = map(create_causal_mask, [])\n        causal_mask")),
    "masks made in a method": (RANGE, RANGE.replace("        causal_mask", "        self.make()\n        causal_mask")),
}  # fmt: skip
HARMLESS = {
    "moved": (GIVEN, GIVEN.replace("=position_ids", "=position_ids.to(inputs_embeds.device).long()")),
    "shifted": (GIVEN, GIVEN.replace("=position_ids", "=position_ids + inputs_embeds.shape[1]")),
    "one way of two": (RANGE, RANGE.replace("        causal_mask", "        else:\n            position_ids = position_ids.view(-1, inputs_embeds.shape[1])\n        causal_mask")),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_whatever_else_is_done_to_them_rules_them_out(edit: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", LLAMA, *EDITS[edit])
    if edit == "masks made in a method":
        head = "class LlamaModel(LlamaPreTrainedModel):\n"
        made = "    def make(self):\n        return create_causal_mask(*self.given)\n\n"
        edit_upstream(tmp_path / "upstream", LLAMA, head, head + made)
    assert found(folder(tmp_path / "upstream"), "llama", "LlamaModel") is None


MASKS = "            # Create the masks\n            causal_mask_mapping = {"
IN_DICTIONARIES = {
    "another entry": 'mask_kwargs["position_ids"] = self.positions',
    "an entry that is added to": 'mask_kwargs["position_ids"] += self.positions',
    "an entry by a name": "mask_kwargs[self.key] = self.positions",
    "an entry by another name for it": 'other = mask_kwargs\n            other["position_ids"] = self.positions',
    "handed to what may change it": "self.change(mask_kwargs)",
    "updated": "mask_kwargs.update(kwargs)",
    "another dictionary": "mask_kwargs = self.arguments",
}


@pytest.mark.parametrize("line", [*IN_DICTIONARIES.values(), None], ids=[*IN_DICTIONARIES, "another key"])
def test_dictionaries_of_arguments(line: str | None, tmp_path: Path) -> None:
    file = "transformers/models/qwen2/modeling_qwen2.py"
    copy_upstream(tmp_path / "upstream")
    written = line or 'mask_kwargs["layer_idx"] = None'
    edit_upstream(tmp_path / "upstream", file, MASKS, f"            {written}\n{MASKS}")
    assert found(folder(tmp_path / "upstream"), "qwen2", "Qwen2Model") == (None if line else OWN)


def test_what_is_named_outside_of_functions_rules_a_file_out(tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    head = "class LlamaModel(LlamaPreTrainedModel):\n"
    edit_upstream(tmp_path / "upstream", LLAMA, head, f"{head}    make = create_causal_mask\n\n")
    assert found(folder(tmp_path / "upstream"), "llama", "LlamaModel") is None


@pytest.mark.parametrize("edit", HARMLESS)
def test_what_keeps_rows_doesnt(edit: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", LLAMA, *HARMLESS[edit])
    assert found(folder(tmp_path / "upstream"), "llama", "LlamaModel") == OWN


def test_a_part_that_makes_masks_rules_its_region_out(tmp_path: Path) -> None:
    (region,) = make_plan(analyze(installed(), "llama"), Granularity.AUTO).regions
    assert region.masks == OWN
    copy_upstream(tmp_path / "upstream")
    line = "        hidden_states = self.input_layernorm(hidden_states)\n"
    mask = "        attention_mask = create_causal_mask(None, hidden_states, None, None, position_ids)\n"
    edit_upstream(tmp_path / "upstream", LLAMA, line, mask + line)
    (region,) = make_plan(analyze(folder(tmp_path / "upstream"), "llama"), Granularity.AUTO).regions
    assert region.masks is None
    # Its layers make no masks, and aren't told.
    layers = make_plan(analyze(installed(), "llama"), Granularity.BLOCK).regions
    assert [each.masks for each in layers] == [None]


STEPS = torch.arange(7)
POSITIONS = {
    "none": None,
    "a range": STEPS[None],
    "an offset": STEPS[None] + 5,
    "packed": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
    "backwards": STEPS.flip(0)[None],
    "all alike": torch.zeros(1, 7, dtype=torch.long),
}
ROWS = {
    "a row for both": STEPS[None],
    "rows of their own": torch.stack([STEPS, STEPS + 4]),
    "one of them packed": torch.stack([STEPS, STEPS % 4]),
}


def inputs(made: Any, rows: int, positions: torch.Tensor | None, **others: Any) -> dict[str, Any]:
    ids = torch.randint(3, made.config.vocab_size, (rows, 7), generator=torch.Generator().manual_seed(rows))
    return {"input_ids": ids, "position_ids": positions, "use_cache": False, **others}


# The first differs from eager in training where its graph makes a mask. The last two weren't looked at when the rule was written.
@pytest.mark.parametrize(
    ("package", "name"), [("kolibri1", "Kolibri1Model"), ("olmo2", "Olmo2Model"), ("cohere2", "Cohere2Model")]
)
def test_values_and_gradients_are_upstreams(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    results = {}
    for key, positions in POSITIONS.items():
        results[key] = built.require_equal_steps(upstream, generated, inputs(made, 1, positions))["last_hidden_state"]
    assert not torch.equal(results["a range"], results["packed"])
    for positions in ROWS.values():
        built.require_equal_steps(upstream, generated, inputs(made, 2, positions))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    for positions in (None, *ROWS.values()):
        built.require_equal_steps(upstream, generated, inputs(made, 2, positions, attention_mask=mask))
        built.require_equal_steps(upstream, generated, inputs(made, 2, positions, use_cache=True))
    assert _fallbacks() == {}


@torch.no_grad()
def test_with_a_cache_it_isnt_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("olmo2", "Olmo2Model", tmp_path, monkeypatch)
    found = []
    for model in (upstream.eval(), generated.eval()):
        cache = DynamicCache(config=made.config)
        given = {**inputs(made, 2, None), "past_key_values": cache, "use_cache": True}
        steps = [model(**given), model(**given)]
        found.append(torch.cat([each.last_hidden_state for each in steps]))
    assert torch.equal(*found)
    assert _fallbacks() == {}


def test_rows_of_text_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of an image rise in steps of their own: the first of four rows counts."""
    upstream, generated, made = built.built_pair("qwen3_vl", "Qwen3VLTextModel", tmp_path, monkeypatch)
    axes = torch.randint(0, 5, (3, 2, 7), generator=torch.Generator().manual_seed(0))
    for text in (torch.stack([STEPS, STEPS + 2]), torch.stack([STEPS, STEPS % 3])):
        built.require_equal_steps(upstream, generated, inputs(made, 2, torch.cat([text[None], axes])))
        built.require_equal_steps(upstream, generated, inputs(made, 2, text))
    assert _fallbacks() == {}
    # No mask is made of positions without such a row; their graph is of three.
    built.require_equal_steps(upstream, generated, inputs(made, 2, axes))


@torch.no_grad()
def test_a_graph_of_somebody_elses_looks_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("olmo2", "Olmo2Model", tmp_path, monkeypatch)
    compiled = torch.compile(generated.eval(), backend="eager")
    for positions in (POSITIONS["a range"], POSITIONS["packed"]):
        given = inputs(made, 1, positions)
        # Before and after: the region's own graph leaves nothing behind.
        for model in (generated, compiled, generated):
            expected = upstream.eval()(**given).last_hidden_state
            torch.testing.assert_close(model(**given).last_hidden_state, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_graph_that_looks_all_the_same_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where another thread took back Dynamo's settings."""
    upstream, generated, made = built.built_pair("olmo2", "Olmo2Model", tmp_path, monkeypatch)
    monkeypatch.setattr(compiler, "FINDS_PACKED", ())
    given = inputs(made, 1, POSITIONS["a range"])
    assert torch.equal(generated.eval()(**given).last_hidden_state, upstream.eval()(**given).last_hidden_state)
    ((reason,),) = _fallbacks().values()
    assert "in a graph upstream takes masking_utils.py:" in reason


def test_threads_are_told_for_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("olmo2", "Olmo2Model", tmp_path, monkeypatch)
    names = ["a range", "packed"] * 2
    found: dict[int, torch.Tensor] = {}
    together = threading.Barrier(len(names))

    def run(index: int) -> None:
        together.wait()
        with torch.no_grad():
            found[index] = generated(**inputs(made, 1, POSITIONS[names[index]])).last_hidden_state

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(names))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for index, name in enumerate(names):
        with torch.no_grad():
            expected = upstream(**inputs(made, 1, POSITIONS[name])).last_hidden_state
        assert torch.equal(found[index], expected)


def test_upstream_is_asked_where_it_looks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    find = masking_utils.find_packed_sequence_indices
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda ids: looks.append(ids) or find(ids))
    module = SimpleNamespace(config=SimpleNamespace(use_cache=True), training=True, gradient_checkpointing=False)
    given = {"input_ids": STEPS[None], "position_ids": STEPS[None], "use_cache": False}

    def ask(**changes: Any) -> bool:
        return are_plain(module, given | changes, own=True, first_of_four=False)

    assert ask(position_ids=None)
    assert not ask(attention_mask=STEPS[None])
    assert not ask(past_key_values=object())
    assert not ask(cache_params=DynamicCache())
    assert not ask(use_cache=None)
    # Neither as many tokens nor such rows: what upstream makes of them isn't known here.
    assert not ask(position_ids=STEPS[None, :5])
    assert not ask(position_ids=STEPS.expand(4, 1, -1))
    assert not looks
    assert ask()
    assert not ask(position_ids=POSITIONS["packed"])
    module.gradient_checkpointing = True
    assert ask(use_cache=None)
    assert len(looks) == 3


SERVED = """
import sys
from contextlib import nullcontext
from pathlib import Path
import torch
from built_positions.olmo2 import Olmo2Model
from transformers.models.olmo2.modeling_olmo2 import Olmo2Model as Upstream
from vgen.runtime import counters
from vgen.runtime.building import building
from vgen.verify.making import make_tiny
made = make_tiny(Upstream)
torch.manual_seed(0)
upstream, model = Upstream(made.config).eval(), Olmo2Model(made.config).eval()
model.load_state_dict(upstream.state_dict())
ids = torch.arange(7)[None] + 3
steps = torch.arange(7)[None]
# In turns: no guard of an artifact tells the one from the other.
for positions in (steps, steps % 4, steps, steps % 4, steps + 2):
    given = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    with torch.no_grad(), building(Path(sys.argv[2])) if sys.argv[1] == "build" else nullcontext():
        found = model(**given).last_hidden_state
        expected = upstream(**given).last_hidden_state
    torch.testing.assert_close(found, expected)
count = counters()["olmo2.decoder"]
assert (count.loaded, count.compiles) == (5, 0), count
assert len(list(Path(sys.argv[2]).glob("*.vgenart"))) == 2
"""


@pytest.mark.slow
def test_another_process_tells_them_apart(tmp_path: Path) -> None:
    built.require_served("olmo2", "built_positions", SERVED, tmp_path)


def _fallbacks() -> dict[str, dict[str, int]]:
    return {tag: count.fallbacks for tag, count in runtime.counters().items() if count.fallbacks}
