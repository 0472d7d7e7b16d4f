"""Hazards: what is called an error breaks a full graph of the torch that is installed, and what isn't doesn't."""

from __future__ import annotations

import ast
import importlib.util
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.hazards import hazards
from vgen.codegen.analyze.model import analyze
from vgen.codegen.analyze.scan import scan
from vgen.codegen.facts import Forward, Hazard, HazardKind, HazardLevel, Ref, Span
from vgen.codegen.plan import Granularity
from vgen.codegen.planning import make_plan
from vgen.codegen.source import Source, installed

ERROR, WARNING, NOTE = HazardLevel.ERROR, HazardLevel.WARNING, HazardLevel.NOTE

HEAD = """
import logging, math, warnings
import torch
import torch.nn.functional as F
from transformers.utils import is_torchdynamo_compiling, is_tracing
from transformers.integrations.sdpa_attention import sdpa_attention_forward
logger = logging.getLogger("sample")
"""
SIGNATURE = (
    "def f(x: torch.Tensor, mask: torch.BoolTensor, n: torch.LongTensor, grid: torch.LongTensor, missing=None):"
)

# The body of a function, and its hazards, the most serious first; none at all where it's plain.
SAMPLES: dict[str, tuple[str, list[tuple[HazardKind, HazardLevel]]]] = {
    "plain": ("return x * 2", []),
    "shapes": ("return x * 2 if x.shape[0] > 3 and x.ndim == 2 and x.dtype != torch.int64 else x", []),
    "none": ("if missing is None and x is not None:\n    return x * 2\nreturn x", []),
    "sizes": ("b, c = x.shape\nfor i in range(x.size(0)):\n    x = x * i\nreturn x.reshape(b, -1)[: len(x)]", []),
    "list": ("parts = []\nfor part in torch.split(x, 2):\n    parts.append(part)\nreturn torch.cat(parts)", []),
    "where": ("return torch.where(mask[:, None], x, 0.0) if n is not None else x", []),
    "store through a mask": ("y = x.clone()\ny[mask] = 0.0\nreturn y", []),
    "scaled by a symbol": ("return x * n.sum().item()", [(HazardKind.HOST_READ, WARNING)]),
    "a list of lengths": (
        "return [part.sum() for part in torch.split(x, n.tolist())]",
        [(HazardKind.HOST_READ, WARNING)],
    ),
    "int": ("return torch.zeros(3, int(n.max())) + 1", [(HazardKind.HOST_READ, WARNING)]),
    "slice": ("return x[: n[0]] * 2", [(HazardKind.HOST_READ, WARNING)]),
    "arange": ("return torch.arange(n.sum()) * 2", [(HazardKind.HOST_READ, WARNING)]),
    "copy": ("return x.cpu() * 2", [(HazardKind.HOST_READ, NOTE)]),
    "numpy": ("return torch.from_numpy(n.numpy()) * 2", [(HazardKind.HOST_READ, NOTE)]),
    "if": ("if mask.any():\n    return x * 2\nreturn x", [(HazardKind.DATA_BRANCH, ERROR)]),
    "if of a read": (
        "return x if n.max().item() > 2 else x * 2",
        [(HazardKind.DATA_BRANCH, ERROR), (HazardKind.HOST_READ, WARNING)],
    ),
    "and": ("return (x is not None and mask.all()) and x", [(HazardKind.DATA_BRANCH, ERROR)]),
    "not": ("return not mask.any()", [(HazardKind.DATA_BRANCH, ERROR)]),
    "while": ("i = n.sum()\nwhile i > 0:\n    i = i - 1\nreturn i", [(HazardKind.DATA_BRANCH, ERROR)]),
    "any of a generator": (
        "return x if any(each > 1 for each in n) else x * 2",
        [(HazardKind.DATA_BRANCH, ERROR), (HazardKind.DATA_LOOP, WARNING)],
    ),
    "raise": (
        "if n.sum() > 100:\n    raise ValueError(n.tolist())\nreturn x",
        [(HazardKind.DATA_BRANCH, ERROR), (HazardKind.HOST_READ, NOTE)],
    ),
    "equal": ("return x if torch.equal(n, n) else x * 2", [(HazardKind.DATA_BRANCH, ERROR)]),
    "assert": ("assert n.sum() < 100\nreturn x * 2", [(HazardKind.HOST_READ, NOTE)]),
    "assert with text": ("assert n.sum() < 100, f'{x.shape}'\nreturn x * 2", [(HazardKind.DATA_BRANCH, ERROR)]),
    "rows": ("return [x[:1] * t for t, h, w in grid]", [(HazardKind.DATA_LOOP, WARNING)]),
    "range": (
        "for _ in range(n[0].item()):\n    x = x * 2\nreturn x",
        [(HazardKind.DATA_LOOP, ERROR), (HazardKind.HOST_READ, WARNING)],
    ),
    "loop over indices": (
        "return [x[:1] * each for each in mask.nonzero()]",
        [(HazardKind.DATA_LOOP, ERROR), (HazardKind.DATA_SHAPE, WARNING)],
    ),
    "list of indices": (
        "return mask.nonzero().flatten().tolist()",
        [(HazardKind.HOST_READ, ERROR), (HazardKind.DATA_SHAPE, WARNING)],
    ),
    "size of a choice": (
        "return x if len(torch.unique(n)) > 2 else x * 2",
        [(HazardKind.DATA_BRANCH, ERROR), (HazardKind.DATA_SHAPE, WARNING)],
    ),
    "nonzero": ("return torch.nonzero(mask) + 1", [(HazardKind.DATA_SHAPE, WARNING)]),
    "where of one": ("return torch.where(mask)[0] + 1", [(HazardKind.DATA_SHAPE, WARNING)]),
    "repeats": ("return torch.repeat_interleave(n, n) + 1", [(HazardKind.DATA_SHAPE, WARNING)]),
    "repeats of known size": ("return torch.repeat_interleave(n, n, output_size=6) + n.repeat_interleave(2)", []),
    "counts": ("return torch.bincount(n) + 1", [(HazardKind.DATA_SHAPE, WARNING)]),
    "unique": ("return n.unique() + 1", [(HazardKind.DATA_SHAPE, WARNING)]),
    "one hot": ("return F.one_hot(n) * 2", [(HazardKind.DATA_SHAPE, ERROR)]),
    "mask index": ("return x[mask] * 2", [(HazardKind.MASK_INDEX, WARNING)]),
    "comparison index": ("return x[n[[0, 1, 2, 0, 1, 2]] > 1] * 2", [(HazardKind.MASK_INDEX, WARNING)]),
    "log": ("logger.warning('x')\nreturn x * 2", [(HazardKind.LOGGING, ERROR)]),
    "log once": ("logger.warning_once('x')\nreturn x * 2", [(HazardKind.LOGGING, ERROR)]),
    "log at times": ("if x.shape[0] > 100:\n    logger.warning('x')\nreturn x * 2", [(HazardKind.LOGGING, WARNING)]),
    "warn": ("warnings.warn('x')\nreturn x * 2", [(HazardKind.LOGGING, ERROR)]),
    "not in a graph": (
        "if not is_torchdynamo_compiling() and mask.any():\n    return x\nreturn x * 2",
        [(HazardKind.DATA_BRANCH, NOTE)],
    ),
    "not traced": ("if not is_tracing(x):\n    assert n.tolist()\nreturn x * 2", [(HazardKind.HOST_READ, NOTE)]),
    "returned before": (
        "if torch.compiler.is_compiling():\n    return x * 2\nif mask.any():\n    return x\nreturn x * 3",
        [(HazardKind.DATA_BRANCH, NOTE)],
    ),
    "jit": (
        "if not torch.jit.is_tracing():\n    if mask.any():\n        return x * 2\nreturn x",
        [(HazardKind.DATA_BRANCH, ERROR)],
    ),
    "half": (
        "if x.dtype == torch.float16 and torch.isinf(x).any():\n    x = x.clamp(-1, 1)\nreturn x * 2",
        [(HazardKind.DATA_BRANCH, WARNING)],
    ),
    "an option": (
        "if missing is not None:\n    return x * missing.item()\nreturn x * 2",
        [(HazardKind.HOST_READ, WARNING)],
    ),
    "attention by lengths": (
        "q = x.view(1, 1, 6, 4)\n"
        "attend = sdpa_attention_forward\n"
        "module = torch.nn.Module\n"
        "splits = [torch.split(each, n.tolist(), dim=2) for each in (q, q, q)]\n"
        "return torch.cat([attend(module, a, b, c, attention_mask=None)[0] for a, b, c in zip(*splits)], dim=1)",
        [(HazardKind.DATA_BRANCH, ERROR), (HazardKind.HOST_READ, WARNING)],
    ),
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """All samples as functions of one module."""
    path = tmp_path_factory.mktemp("samples") / "sample_hazards.py"
    path.write_text(HEAD + "\n".join(_function(name) for name in SAMPLES))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _function(name: str) -> str:
    signature = SIGNATURE.replace(" f(", f" {_identifier(name)}(")
    return f"\n{signature}\n{textwrap.indent(SAMPLES[name][0], '    ')}\n"


def _identifier(name: str) -> str:
    return "sample_" + name.replace(" ", "_")


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_found(name: str) -> None:
    node = ast.parse(_function(name)).body[0]
    assert isinstance(node, ast.FunctionDef)
    found = sorted({(each.kind, each.level) for each in scan(node).hazards}, key=lambda each: -each[1].rank)
    assert found == SAMPLES[name][1]


@pytest.mark.parametrize("name", SAMPLES)
def test_an_error_breaks_the_graph_and_nothing_else_does(name: str, samples: ModuleType) -> None:
    function: Callable[..., object] = getattr(samples, _identifier(name))
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    inputs = (
        torch.randn(6, 4),
        torch.tensor([True, False, True, True, False, True]),
        torch.tensor([1, 2, 3]),
        torch.tensor([[1, 2, 1], [1, 2, 2]]),
    )
    if any(level is ERROR for _, level in SAMPLES[name][1]):
        with pytest.raises((TorchDynamoException, GuardOnDataDependentSymNode)):
            compiled(*inputs)
    else:
        compiled(*inputs)


@cache
def source() -> Source:
    return installed()


@cache
def classes() -> Classes:
    return Classes(source())


NO_PROLOGUE = Forward(
    owner=Ref(file="", name=""),
    parameters=(),
    returns=None,
    decorators=(),
    shapes=(),
    prologue=(),
    prologue_only=(),
    packed=None,
    grouped=None,
    clamps=None,
    span=Span(file="", line=0),
)


def of(model: str, name: str) -> tuple[Hazard, ...]:
    """The hazards of one class, without its children's."""
    return hazards(classes(), Ref(file=f"transformers/models/{model}/modeling_{model}.py", name=name), NO_PROLOGUE)


def errors(model: str, name: str) -> list[str]:
    return [each.message for each in of(model, name) if each.level is ERROR and each.resolved_by is None]


def test_helpers_of_other_modules_are_followed() -> None:
    found = {each.span.file for each in of("qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel")}
    assert found == {"transformers/vision_utils.py", "transformers/utils/generic.py"}


def test_masks_and_caches_are_not_followed() -> None:
    assert {each.kind for each in of("llama", "LlamaModel")} == set()


def test_what_the_prologue_hoists_is_resolved() -> None:
    facts = analyze(source(), "qwen2_5_vl")
    found = [each for each in facts.hazards if each.owner.name == "Qwen2_5_VisionTransformerPretrainedModel"]
    assert {each.resolved_by for each in found} == {"prologue"}
    assert {each.kind for each in found} >= {HazardKind.HOST_READ, HazardKind.DATA_SHAPE, HazardKind.MASK_INDEX}


def test_an_own_method_that_runs_in_training_only_is_a_warning() -> None:
    assert errors("bart", "BartEncoder") == []
    assert errors("wav2vec2", "Wav2Vec2Encoder") == []
    assert [each.level for each in of("wav2vec2", "Wav2Vec2Encoder") if each.kind is HazardKind.DATA_BRANCH] == [
        WARNING
    ]


def test_experts_that_a_decorator_replaces_are_resolved() -> None:
    found = of("mixtral", "MixtralExperts")
    assert {each.resolved_by for each in found} == {"experts implementation"}
    assert errors("switch_transformers", "SwitchTransformersExperts") == [
        "the loop over `expert_hit` runs as often as the values of a tensor say"
    ]


def test_experts_without_it_break() -> None:
    """As the tiny models of all three did."""
    for model, name in [("dbrx", "DbrxExperts"), ("longcat_flash", "LongcatFlashExperts")]:
        assert "the loop over `expert_hit` runs as often as the values of a tensor say" in errors(model, name)


def test_a_truth_read_for_others_breaks() -> None:
    assert errors("led", "LEDEncoder") == [
        "`is_index_global_attn.flatten().any().item()` reads a tensor's values on the host"
    ]


def test_sequences_of_unknown_length_break_in_the_children_that_attend() -> None:
    (message,) = errors("pixtral", "PixtralVisionModel")
    assert "self.transformer" in message
    # A batch of unknown size goes through.
    assert errors("smolvlm", "SmolVLMModel") == []


def test_dynamic_rope_is_for_the_region_to_refuse() -> None:
    (found,) = of("llama", "LlamaRotaryEmbedding")
    assert (found.kind, found.level, found.resolved_by) == (HazardKind.DYNAMIC_ROPE, WARNING, "rope check")


def test_a_layer_s_number_is_a_note() -> None:
    (found,) = of("llama", "LlamaAttention")
    assert (found.kind, found.level) == (HazardKind.LAYER_NUMBER, NOTE)
    text = source().file(found.span.file).lines[found.span.line - 1]
    assert text[found.span.column :].startswith("self.layer_idx")


def test_writes_to_the_module_are_warnings() -> None:
    found = [each for each in of("ctrl", "CTRLModel") if each.kind is HazardKind.STATE_WRITE]
    assert [each.message for each in found] == [
        "`self.pos_encoding = …` changes the module while it runs: whatever reads it recompiles"
    ]


WRITES = {
    "an attribute": "self.seen = x.shape[0]",
    "a sum": "self.seen += x.shape[0]",
    "one of several": "self.seen, y = x.shape[0], x",
    "of the config": "self.config.seen = x.shape[0]",
    "of the config by another name": "config = self.config\nconfig.seen = x.shape[0]",
    "by name": "setattr(self, 'seen', x.shape[0])",
    "to a list": "self.kept.append(x.shape[0])",
    "a buffer": "self.register_buffer('seen', x)",
}
READS_ONLY = {
    "a name of its own": "config = self.config\nconfig = {}\nconfig['seen'] = 1",
    "a list of its own": "kept = []\nkept.append(x)",
    "another object": "x.seen = 1",
    "what is read": "seen = self.config.seen\nseen = 2",
}


@pytest.mark.parametrize("body", [*WRITES.values(), *READS_ONLY.values()], ids=[*WRITES, *READS_ONLY])
def test_writes_to_the_module_or_its_config(body: str) -> None:
    text = f"def forward(self, x: torch.Tensor):\n{textwrap.indent(body, '    ')}\n    return x * 2"
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    found = [(each.kind, each.level) for each in scan(node).hazards]
    assert found == ([(HazardKind.STATE_WRITE, WARNING)] if body in WRITES.values() else [])


@pytest.mark.parametrize("name", WRITES)
def test_a_write_to_the_module_is_captured_and_may_recompile(name: str, tmp_path: Path) -> None:
    """So it is a warning: the graph is whole, but another call may need another one."""
    path = tmp_path / "sample_writes.py"
    forward = textwrap.indent(
        f"def forward(self, x):\n{textwrap.indent(WRITES[name], '    ')}\n    return x * 2", "    "
    )
    init = "    def __init__(self):\n        super().__init__()\n        self.config, self.seen, self.kept = Config(), 0, []\n"
    path.write_text(
        f"import torch\n\nclass Config:\n    seen = 0\n\nclass Writes(torch.nn.Module):\n{init}\n{forward}\n"
    )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch._dynamo.reset()
    writes = module.Writes()
    if name == "a buffer":
        del writes.seen
    x = torch.ones(3, 2)
    assert torch.equal(torch.compile(writes, fullgraph=True, backend="eager")(x), x * 2)


@pytest.mark.parametrize(
    ("model", "name"),
    [("siglip", "SiglipVisionEmbeddings"), ("siglip2", "Siglip2VisionEmbeddings"), ("jetmoe", "JetMoeTopKGating"), ("fsmt", "FSMTModel")],
)  # fmt: skip
def test_what_was_captured_whole_has_no_errors(model: str, name: str) -> None:
    """Tried with tiny models under fullgraph."""
    assert errors(model, name) == []


@pytest.mark.parametrize(
    ("model", "name"), [("vilt", "ViltEmbeddings"), ("reformer", "LSHSelfAttention"), ("evolla", "EvollaSequenceAlignerCrossAttention")]
)  # fmt: skip
def test_what_broke_has_errors(model: str, name: str) -> None:
    assert errors(model, name) != []


def test_warnings_leave_a_region_whole() -> None:
    facts = analyze(source(), "lfm3_vl")
    plan = make_plan(facts, Granularity.AUTO)
    left = [each for each in plan.unresolved if each.owner.name == "Lfm3VlVisionModel"]
    assert [each.level for each in left] == [WARNING]
    assert {region.granularity for region in plan.regions} == {Granularity.WHOLE}


def test_an_error_in_between_makes_blocks() -> None:
    facts = analyze(source(), "pixtral")
    plan = make_plan(facts, Granularity.AUTO)
    assert {region.granularity for region in plan.regions} == {Granularity.BLOCK}


def test_nothing_depends_on_the_order_of_questions(tmp_path: Path) -> None:
    again = Classes(installed())
    file = "transformers/models/qwen2_vl/modeling_qwen2_vl.py"
    names = ["VisionAttention", "Qwen2VisionTransformerPretrainedModel", "Qwen2VLModel"]
    forwards = {name: hazards(again, Ref(file=file, name=name), NO_PROLOGUE) for name in names}
    assert forwards == {name: of("qwen2_vl", name) for name in reversed(names)}
