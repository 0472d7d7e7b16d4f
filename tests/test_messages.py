"""Checks whose messages have sizes in them: which are found and which are left alone, and that they fail as upstream's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import built
import pytest
import torch
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.messages import find, methods
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed


def model(name: str, package: str) -> Ref:
    return Ref(file=f"transformers/models/{package}/modeling_{package}.py", name=name)


CHAMELEON = model("ChameleonModel", "chameleon")
MESSAGE = '            f"Image features and image tokens do not match, tokens: {n_image_tokens}, features: {n_image_features}",\n'


def found(source: Source, ref: Ref) -> dict[str, int]:
    return {tree.method.name.value: len(each) for tree, each in methods(Classes(source), Trees(source), ref)}


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        (CHAMELEON, {"get_placeholder_mask": 1}),
        (model("MuseSparkAudioPatchEmbedding", "muse_spark"), {"forward": 1}),
        (model("DiffusionGemmaEncoderModel", "diffusion_gemma"), {"get_placeholder_mask": 1}),
    ],
    ids=str,
)
def test_they_are_found(ref: Ref, expected: dict[str, int]) -> None:
    assert found(installed(), ref) == expected


@pytest.mark.parametrize(
    "ref",
    [
        # Its own forward is decorated, which would be lost.
        model("MuseSparkAudioModel", "muse_spark"),
        # A function already.
        model("Idefics3Model", "idefics3"),
        # No such checks.
        model("LlamaModel", "llama"),
    ],
    ids=str,
)
def test_others_are_left_alone(ref: Ref) -> None:
    assert found(installed(), ref) == {}


EDITS = {
    "plain text": (MESSAGE, '            "Image features and image tokens do not match",\n'),
    "attributes of the module": (MESSAGE, '            f"no such tokens: {self.config.image_token_id}",\n'),
    "a name": (MESSAGE, "            message,\n"),
    "super": ("        n_image_tokens = special_image_mask.sum()\n        n_image_features = image_features.shape[0]", "        super().get_input_embeddings()\n        n_image_tokens = special_image_mask.sum()\n        n_image_features = image_features.shape[0]"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_what_has_no_sizes_in_it_or_cannot_be_moved_is_left_alone(edit: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", CHAMELEON.file, *EDITS[edit])
    assert found(folder(tmp_path / "upstream"), CHAMELEON) == {}


def test_a_message_by_its_name_is_found(tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", CHAMELEON.file, MESSAGE, MESSAGE.replace('f"Image', 'msg=f"Image'))
    source = folder(tmp_path / "upstream")
    assert len(find(Trees(source).method(CHAMELEON, "get_placeholder_mask"))) == 1


def chameleon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    upstream, generated, _ = built.built_pair("chameleon", "ChameleonForConditionalGeneration", tmp_path, monkeypatch)
    return upstream.eval(), generated.eval()


def inputs_for(upstream: Any, height: int, width: int, missing: int = 0) -> dict[str, torch.Tensor]:
    """Texts with one image each, whose tokens upstream counts."""
    pixels = torch.randn(2, 3, height, width)
    tokens = upstream.model.get_image_tokens(pixels).shape[1]
    image = upstream.model.vocabulary_mapping.image_token_id
    text = torch.randint(5, 9, (2, 4))
    assert image not in range(5, 9)
    ids = torch.cat([text, torch.full((2, tokens), image), text], dim=1)
    ids[1, 4 : 4 + missing] = 5
    return {"input_ids": ids, "pixel_values": pixels}


@torch.no_grad()
def test_one_graph_serves_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached properties of what maps the image's tokens are computed before, too."""
    upstream, generated = chameleon(tmp_path, monkeypatch)
    for height, width in ((64, 64), (128, 64), (64, 96), (64, 64)):
        inputs = inputs_for(upstream, height, width)
        assert torch.equal(generated(**inputs).logits, upstream(**inputs).logits)
    (count,) = runtime.counters().values()
    assert (count.calls, count.compiles, count.variants) == (4, 1, 1)
    assert not count.fallbacks


@torch.no_grad()
@pytest.mark.parametrize("first", [True, False], ids=["first", "compiled before"])
def test_a_check_fails_as_upstreams_does(first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated = chameleon(tmp_path, monkeypatch)
    good, bad = inputs_for(upstream, 64, 64), inputs_for(upstream, 64, 64, missing=3)
    if not first:
        generated(**good)
    messages = []
    for each in (upstream, generated):
        with pytest.raises(ValueError, match="do not match") as error:
            each(**bad)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    # Nothing is left of it.
    assert torch.equal(generated(**good).logits, upstream(**good).logits)
    (count,) = runtime.counters().values()
    assert (count.compiles, count.fallbacks) == (1, {})
