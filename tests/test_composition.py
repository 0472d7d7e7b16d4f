"""Children in all the ways that models make them: the tree is upstream's, with the generated classes in their places."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from catalogue_worker import compare
from conftest import run_vgen
from transformers import AutoModel, BertConfig, BertModel, EncoderDecoderConfig, EncoderDecoderModel

from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.composition import children, live
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.facts import ChildKind, Ref
from vgen.codegen.source import installed

BUILT = (
    "bert",
    "depth_anything",
    "dinov2",
    "encoder_decoder",
    "pop2piano",
    "qwen2_5_omni",
    "resnet",
    "t5",
    "udop",
    "upernet",
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("composed")
    done = run_vgen("build", *BUILT, "--out", "composed_models", cwd=root)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(root))
    yield "composed_models"
    sys.path.remove(str(root))


def both(packages: str, model: str, name: str, config: Any = None) -> tuple[Any, Any]:
    """The generated and upstream's model on the meta device, proved to have the same tree."""
    generated = getattr(importlib.import_module(f"{packages}.{model}"), name)
    upstream = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)
    config = upstream.config_class() if config is None else config
    with torch.device("meta"):
        made, expected = generated(config), upstream(config)
    assert compare(expected, made) == ""
    return made, expected


def module_of(packages: str, model: str) -> str:
    return f"{packages}.{model}.modeling_{model}"


def found(model: str, name: str) -> dict[str, list[tuple[ChildKind, str, str | None]]]:
    """Attribute → the kinds, methods and classes of the children that a class makes under it."""
    classes = Classes(installed())
    ref = Ref(file=f"transformers/models/{model}/modeling_{model}.py", name=name)
    made: dict[str, list[tuple[ChildKind, str, str | None]]] = {}
    for child in children(classes, Trees(classes.source), ref):
        made.setdefault(child.attribute, []).append((child.kind, child.method, child.target and child.target.name))
    return made


# Outside of __init__.


def test_parts_that_another_method_makes_are_generated(packages: str) -> None:
    made, _ = both(packages, "qwen2_5_omni", "Qwen2_5OmniForConditionalGeneration")
    assert {type(part).__module__ for part in (made.thinker, made.talker, made.token2wav)} == {
        module_of(packages, "qwen2_5_omni")
    }
    assert hasattr(type(made.talker.model), "region")


def test_a_part_made_later_is_generated(packages: str) -> None:
    model = importlib.import_module(f"{packages}.qwen2_5_omni").Qwen2_5OmniForConditionalGeneration
    with torch.device("meta"):
        made = model(model.config_class(enable_audio_output=False))
        assert not hasattr(made, "talker")
        made.enable_talker()
    assert type(made.talker).__module__ == module_of(packages, "qwen2_5_omni")


# Live parts.


def tiny_bert(**changed: Any) -> BertConfig:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    return BertConfig(**sizes, **changed)


def test_parts_by_config_are_generated_and_live_ones_stay(packages: str) -> None:
    config = EncoderDecoderConfig.from_encoder_decoder_configs(tiny_bert(), tiny_bert())
    made, _ = both(packages, "encoder_decoder", "EncoderDecoderModel", config)
    assert type(made.encoder).__module__ == type(made.decoder).__module__ == module_of(packages, "bert")
    live_encoder = BertModel(tiny_bert())
    kept = type(made)(encoder=live_encoder, decoder=AutoModel.from_config(tiny_bert()))
    assert kept.encoder is live_encoder
    assert type(kept.encoder) is BertModel
    assert type(kept.decoder) is BertModel


def test_parts_that_a_class_method_loads_are_generated(packages: str, tmp_path: Path) -> None:
    BertModel(tiny_bert()).save_pretrained(tmp_path)
    generated = importlib.import_module(f"{packages}.encoder_decoder").EncoderDecoderModel
    torch.manual_seed(0)
    made = generated.from_encoder_decoder_pretrained(str(tmp_path), str(tmp_path))
    torch.manual_seed(0)
    expected = EncoderDecoderModel.from_encoder_decoder_pretrained(str(tmp_path), str(tmp_path))
    assert type(made.encoder).__module__ == type(made.decoder).__module__ == module_of(packages, "bert")
    assert compare(expected, made) == ""
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = [each.eval()(input_ids=ids, decoder_input_ids=ids).logits for each in (made, expected)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "name", "parts"),
    [
        ("encoder_decoder", "EncoderDecoderModel", ["encoder", "decoder"]),
        ("rag", "RagModel", ["question_encoder", "generator"]),
        ("vision_text_dual_encoder", "VisionTextDualEncoderModel", ["vision_model", "text_model"]),
        ("llama", "LlamaModel", []),
    ],
)
def test_live_parts_are_seen(model: str, name: str, parts: list[str]) -> None:
    ref = Ref(file=f"transformers/models/{model}/modeling_{model}.py", name=name)
    assert [part for part, _ in live(Classes(installed()), ref)] == parts


# Backbones.


@pytest.mark.parametrize(
    ("model", "name", "backbone"),
    [
        ("depth_anything", "DepthAnythingForDepthEstimation", "dinov2"),
        ("upernet", "UperNetForSemanticSegmentation", "resnet"),
    ],
)
def test_a_backbone_is_generated_where_it_is_built(packages: str, model: str, name: str, backbone: str) -> None:
    made, expected = both(packages, model, name)
    assert type(expected.backbone).__module__ == f"transformers.models.{backbone}.modeling_{backbone}"
    assert type(made.backbone).__module__ == module_of(packages, backbone)


def test_a_backbone_that_isnt_built_is_upstreams_and_said_so(packages: str, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import SwinConfig, UperNetConfig

    config = UperNetConfig(backbone_config=SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"]))
    made, expected = both(packages, "upernet", "UperNetForSemanticSegmentation", config)
    assert type(made.backbone) is type(expected.backbone)
    assert "vgen build swin" in caplog.text


# One class in both roles.


@pytest.mark.parametrize(
    ("model", "name", "stack"),
    [
        ("t5", "T5ForConditionalGeneration", "T5Stack"),
        ("udop", "UdopForConditionalGeneration", "UdopStack"),
        ("pop2piano", "Pop2PianoForConditionalGeneration", "Pop2PianoStack"),
    ],
)
def test_a_stack_is_a_region_in_either_role(packages: str, model: str, name: str, stack: str) -> None:
    made, _ = both(packages, model, name)
    parts = {role: getattr(made, role) for role in ("encoder", "decoder")}
    assert {type(part).__name__ for part in parts.values()} == {stack}
    assert {role: bool(part.config.is_decoder) for role, part in parts.items()} == {"encoder": False, "decoder": True}
    assert type(made.encoder).region.role.name == "EITHER"


# What the source says.


def test_tables_and_local_names_of_classes_are_followed() -> None:
    assert {each[2] for each in found("falcon", "FalconDecoderLayer")["self_attention"]} >= {"FalconAttention"}
    assert {each[0] for each in found("falcon", "FalconDecoderLayer")["self_attention"]} == {ChildKind.CHOSEN}
    assert {each[2] for each in found("bert", "BertAttention")["self"]} == {"BertSelfAttention", "BertCrossAttention"}
    assert len(found("nemotron_h", "NemotronHBlock")["mixer"]) > 2


def test_layers_that_a_method_makes_are_followed() -> None:
    made = [each for kinds in found("zamba2", "Zamba2Model").values() for each in kinds]
    assert (ChildKind.DIRECT, "get_layers", "Zamba2MambaDecoderLayer") in made


def test_what_a_function_makes_is_followed_and_told() -> None:
    made = found("table_transformer", "TableTransformerModel")
    functions = [each[2] for kinds in made.values() for each in kinds if each[0] is ChildKind.FACTORY]
    assert functions == ["TableTransformerSinePositionEmbedding", "TableTransformerLearnedPositionEmbedding"]
    done = run_vgen("explain", "table_transformer")
    assert "build_position_encoding() makes TableTransformerSinePositionEmbedding" in " ".join(done.stdout.split())
