"""Embeddings that a decoder makes of tokens and images: before its graph where that reads values, inside where it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import built
import pytest
import torch
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.model import analyze
from vgen.codegen.facts import EmbeddingBlock
from vgen.codegen.plan import Granularity
from vgen.codegen.planning import make_plan
from vgen.codegen.source import Source, folder, installed

FILE = "transformers/models/phi4_multimodal/modeling_phi4_multimodal.py"
NAME = "Phi4MultimodalModel"


def found(source: Source, model: str, name: str) -> EmbeddingBlock | None:
    plan = make_plan(analyze(source, model), Granularity.AUTO)
    return next(region.embedding for region in plan.regions if region.ref.name == name)


def test_what_reads_values_is_made_before_the_graph() -> None:
    block = found(installed(), "phi4_multimodal", NAME)
    assert block is not None
    assert block.target == "inputs_embeds"
    assert "input_ids" in block.made_of
    assert "image_pixel_values" in block.made_of
    assert "attention_mask" not in block.made_of
    assert block.parts == ("embed_tokens", "embed_tokens_extend")


@pytest.mark.parametrize(
    ("model", "name"),
    [("llama", "LlamaModel"), ("gemma3", "Gemma3TextModel"), ("gpt2", "GPT2Model"), ("bert", "BertModel")],
)
def test_others_stay_inside(model: str, name: str) -> None:
    assert found(installed(), model, name) is None


CHECK = '        if (input_ids is None) ^ (inputs_embeds is not None):\n            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")\n        if use_cache and past_key_values is None:\n            past_key_values = DynamicCache(config=self.config)\n\n        if inputs_embeds is None:\n            inputs_embeds = self.embed_tokens(input_ids)\n            inputs_embeds = self.embed_tokens_extend('
BLOCK = CHECK[CHECK.index("        if inputs_embeds is None:") :]
EDITS = {
    "read afterwards": ("        hidden_states = inputs_embeds\n        position", "        hidden_states = inputs_embeds + input_ids.sum()\n        position"),
    "something else is made, too": (BLOCK, BLOCK.replace("            inputs_embeds = self.embed_tokens(", "            ids = input_ids\n            inputs_embeds = self.embed_tokens(")),
    "made of what changed before": (CHECK, CHECK.replace("        if use_cache", "        input_ids = input_ids + 0\n        if use_cache")),
    "a check that stops embeddings": (CHECK, CHECK.replace("(input_ids is None) ^ (inputs_embeds is not None)", "input_ids is None")),
    "a check of more than that": (CHECK, CHECK.replace("(input_ids is None) ^ (inputs_embeds is not None)", "len(input_ids) == 0")),
    "its outputs are recorded": ('        "hidden_states": Phi4MultimodalDecoderLayer,', '        "hidden_states": Phi4MultimodalDecoderLayer,\n        "image_hidden_states": Phi4MultimodalImageEmbedding,'),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_where_it_can_not_be_moved_it_stays(edit: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", FILE, *EDITS[edit])
    assert found(folder(tmp_path / "upstream"), "phi4_multimodal", NAME) is None


def prompt(config: Any, rows: int, columns: int, words: int = 5) -> dict[str, torch.Tensor]:
    """Tokens around one image of `rows` times `columns` crops: see `Phi4MultimodalImageEmbedding.forward`."""
    vision = config.vision_config
    patches = vision.image_size // vision.patch_size
    side = (patches + patches % 2) // 2
    count = rows * side * (columns * side + 1) + 1 + side * (side + 1)
    ids = torch.randint(3, 200, (1, count + words))
    ids[0, 2 : 2 + count] = vision.image_token_id
    crops = rows * columns + 1
    return {
        "input_ids": ids,
        "image_pixel_values": torch.randn(1, crops, 3, vision.image_size, vision.image_size),
        "image_sizes": torch.tensor([[rows * vision.crop_size, columns * vision.crop_size]]),
        "image_attention_mask": torch.ones(1, crops, patches, patches),
    }


def test_tokens_and_images_as_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("phi4_multimodal", "Phi4MultimodalForCausalLM", tmp_path, monkeypatch)
    upstream.eval()
    generated.eval()
    torch.manual_seed(0)
    for inputs in (prompt(made.config, 1, 1), prompt(made.config, 1, 2), {"input_ids": torch.randint(3, 200, (2, 9))}):
        with torch.no_grad():
            # With what upstream records, which the image encoder inside asks for, too.
            expected, got = (each(**inputs, output_hidden_states=True) for each in (upstream, generated))
        assert torch.equal(got.logits, expected.logits)
        assert len(got.hidden_states) == len(expected.hidden_states)
        assert all(map(torch.equal, got.hidden_states, expected.hidden_states))
        steps = [each.generate(**inputs, max_new_tokens=4, do_sample=False) for each in (upstream, generated)]
        assert torch.equal(*steps)
        built.require_equal_steps(upstream, generated, inputs, "logits")
    count = runtime.counters()["phi4_multimodal.decoder"]
    assert not count.fallbacks
    assert count.compiles == count.variants


def test_wrong_arguments_give_upstreams_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("phi4_multimodal", NAME, tmp_path, monkeypatch)
    both = {"input_ids": torch.ones(1, 3).long(), "inputs_embeds": torch.randn(1, 3, made.config.hidden_size)}
    for wrong in ({}, both):
        for model in (upstream, generated):
            with pytest.raises(ValueError, match="You must specify exactly one of input_ids or inputs_embeds"):
                model(**wrong)
