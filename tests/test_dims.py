"""Dimensions of what enters a forward: evidence stands where it is said to, and spellings of annotations are all understood."""

from __future__ import annotations

from functools import cache

import pytest

from vgen.codegen.analyze.annotations import Annotated, annotated
from vgen.codegen.analyze.model import analyze
from vgen.codegen.facts import ArgumentShape, EvidenceSource, ModelFacts
from vgen.codegen.source import Source, installed

TENSOR, TENSORS, OTHER, NOTHING = Annotated.TENSOR, Annotated.TENSORS, Annotated.OTHER, Annotated.NOTHING
# Decoders, encoders of text, images, audio and packed images, an encoder-decoder: and models that no rule was written by.
MODELS = ("llama", "whisper", "qwen3_vl", "t5", "bert", "wav2vec2", "pixtral", "dinov2", "moonshine", "flava")


@cache
def source() -> Source:
    return installed()


@cache
def facts(model: str) -> ModelFacts:
    return analyze(source(), model)


def shapes(model: str, name: str) -> dict[str, ArgumentShape]:
    """The shapes of one class's forward by argument."""
    forward = next(fact.forward for fact in facts(model).classes if fact.ref.name == name)
    assert forward is not None
    return {shape.name: shape for shape in forward.shapes}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("torch.Tensor", TENSOR),
        ("Tensor", TENSOR),
        ("torch.LongTensor | None", TENSOR),
        ("None | torch.BoolTensor", TENSOR),
        ("Optional[torch.FloatTensor]", TENSOR),
        ("typing.Optional[torch.FloatTensor]", TENSOR),
        ("Union[torch.Tensor, None]", TENSOR),
        ("Optional[Union[torch.Tensor, dict[str, torch.Tensor]]]", TENSOR),
        ("torch.Tensor | tuple[torch.Tensor, ...]", TENSOR),
        ('"torch.Tensor | None"', TENSOR),
        ('Optional["torch.Tensor"]', TENSOR),
        ('Annotated[torch.Tensor, "b s"]', TENSOR),
        ("tuple[torch.Tensor, ...]", TENSORS),
        ("tuple[torch.Tensor, torch.Tensor] | None", TENSORS),
        ("Tuple[Tuple[torch.FloatTensor]]", TENSORS),
        ("Optional[List[torch.FloatTensor]]", TENSORS),
        ("list[torch.Tensor | None]", TENSORS),
        ("dict[str, torch.Tensor]", OTHER),
        ("Cache | None", OTHER),
        ("bool | None", OTHER),
        ("tuple[int, int]", OTHER),
        ("TensorType", OTHER),
        ("not python", OTHER),
        (None, NOTHING),
    ],
)
def test_every_spelling_of_an_annotation(text: str | None, kind: Annotated) -> None:
    assert annotated(text) is kind


@pytest.mark.parametrize("model", MODELS)
def test_evidence_stands_where_it_is_said_to(model: str) -> None:
    seen = 0
    for fact in facts(model).classes:
        for shape in fact.forward.shapes if fact.forward is not None else ():
            for evidence in shape.evidence:
                line = source().file(evidence.span.file).lines[evidence.span.line - 1]
                seen += 1
                match evidence.source:
                    case EvidenceSource.OWN_DOCSTRING:
                        assert line.lstrip().startswith(f"{shape.name} (")
                    case EvidenceSource.SHARED_DOCSTRING:
                        assert evidence.text.strip("()") in line
                    case EvidenceSource.HELPER_DOCSTRING:
                        assert evidence.text.partition(")")[0].lstrip("(") in line
                    case EvidenceSource.ANNOTATION:
                        assert line.lstrip().startswith(f"{shape.name}:") or f" {shape.name}:" in line
                        assert evidence.text.split("\n")[0] in line
                    case EvidenceSource.RESULT_ANNOTATION:
                        assert line.startswith("def ")
                    case EvidenceSource.BODY:
                        assert shape.name in line
                    case EvidenceSource.READING:
                        assert "past_key_values" in line or shape.name in line
    assert seen > 5


def test_without_evidence_no_dimension_is_taken_for_fixed() -> None:
    found = [
        shape
        for model in MODELS
        for fact in facts(model).classes
        if fact.forward is not None
        for shape in fact.forward.shapes
    ]
    kinds = (EvidenceSource.ANNOTATION, EvidenceSource.RESULT_ANNOTATION)
    bare = [shape for shape in found if all(each.source in kinds for each in shape.evidence)]
    assert bare
    assert all(shape.dims is None and shape.disagreement is None for shape in bare)
    assert {shape.dims for shape in found if shape.disagreement is not None} == {None}


def test_names_tie_dimensions_of_several_arguments() -> None:
    llama = shapes("llama", "LlamaModel")
    assert llama["input_ids"].dims == llama["position_ids"].dims == ("batch_size", "sequence_length")
    assert llama["inputs_embeds"].dims == ("batch_size", "sequence_length", None)
    assert llama["attention_mask"].dims == ("batch_size", "kv_length")
    vision = shapes("qwen3_vl", "Qwen3VLVisionModel")
    assert vision["interp_indices"].dims == vision["interp_weights"].dims == ("total_thw", "n_taps")
    whisper = shapes("whisper", "WhisperDecoder")
    assert whisper["encoder_hidden_states"].dims == ("batch_size", "encoder_sequence_length", None)
    assert whisper["inputs_embeds"].dims == ("batch_size", "sequence_length", None)


@pytest.mark.parametrize(
    ("model", "name"), [("glmasr", "GlmAsrEncoder"), ("voxtral_realtime", "VoxtralRealtimeEncoder")]
)
def test_the_shared_docstring_does_not_know_where_audio_features_stand(model: str, name: str) -> None:
    """These models take (batch_size, feature_dim, sequence_length): a convolution over the frames comes first."""
    assert shapes(model, name)["input_features"].dims == ("batch_size", "sequence_length", "feature_dim")


def test_several_tensors_are_no_tensor() -> None:
    position_embeddings = shapes("llama", "LlamaDecoderLayer")["position_embeddings"]
    assert (position_embeddings.is_tuple, position_embeddings.is_tensor) == (True, False)
    assert "past_key_values" not in shapes("llama", "LlamaDecoderLayer")


def test_a_parameter_without_annotation_is_a_tensor_where_something_says_so() -> None:
    t5 = shapes("t5", "T5Stack")
    assert t5["input_ids"].is_tensor
    assert not t5["use_cache"].is_tensor
    assert not t5["past_key_values"].is_tensor
    assert shapes("whisper", "WhisperEncoder")["attention_mask"].is_tensor
