"""Packed attention: every form of it in Transformers is found, what isn't exact is left, and the rewrite computes the same."""

from __future__ import annotations

import ast
import copy
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from upstreams import copy_upstream, edit_upstream

from vgen.codegen.analyze.packed import find
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.build import generate
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed

FORMS = {
    "inkling2": "Inkling2VisionAttention",
    "lfm3_vl": "Lfm3VlVisionAttention",
    "minimax_m3_vl": "MiniMaxM3VLVisionAttention",
    "paddleocr_vl": "PaddleOCRVisionAttention",
    "radio": "RadioAttention",
    "video_llama_3": "VideoLlama3VisionAttention",
}
"""The attentions that keep the weights of each segment."""


@cache
def source() -> Source:
    return installed()


def modeling(model: str) -> str:
    return f"transformers/models/{model}/modeling_{model}.py"


def test_every_split_by_lengths_before_attention_is_found() -> None:
    trees, found, missed = Trees(source()), 0, []
    for model in source().models():
        file = source().modeling_file(model)
        if "lengths.tolist()" not in file.text:
            continue
        for definition in file.definitions.values():
            text = "".join(file.lines[definition.first_line - 1 : definition.last_line])
            if not definition.is_class or "zip(*splits)" not in text:
                continue
            tree = trees.method(Ref(file=file.rel, name=definition.name), "forward")
            found += 1
            if find(tree) is None:
                missed.append(definition.name)
    assert missed == []
    assert found >= 35


@pytest.mark.parametrize("model", FORMS)
def test_the_weights_are_given_a_name_where_upstream_gives_them_one(model: str) -> None:
    tree = Trees(source()).method(Ref(file=modeling(model), name=FORMS[model]), "forward")
    packed = find(tree)
    assert packed is not None
    assert (packed.output, packed.weights, packed.cu_seqlens) == ("attn_output", "attn_weights", "cu_seqlens")
    assert packed.is_causal_by_module is (model == "radio")
    first, last = tree.first_line(packed.statements[0]), tree.last_line(packed.statements[-1])
    lines = source().file(tree.ref.file).lines
    assert lines[first - 1].strip() == "lengths = cu_seqlens[1:] - cu_seqlens[:-1]"
    assert "attn_output = attn_output.reshape" in "".join(lines[last : last + 3])


EDITS = {
    "a mask": ("lfm3_vl", "                    attention_mask=attention_mask,\n                    scaling", "                    attention_mask=attention_mask[0],\n                    scaling"),
    "causal": ("lfm3_vl", "                    is_causal=False,\n                    **kwargs,\n                )\n                attn_outputs", "                    is_causal=True,\n                    **kwargs,\n                )\n                attn_outputs"),
    "no scaling": ("lfm3_vl", "                    scaling=self.scaling,\n                    dropout=0.0,\n                    is_causal", "                    dropout=0.0,\n                    is_causal"),
    "no scaling in a dict": ("radio", ', "scaling": self.scaling}', "}"),
    "other weights": ("lfm3_vl", "attn_weights = None if attn_weights[0] is None else tuple(attn_weights)", "attn_weights = torch.stack(attn_weights)"),
    "weights that are used": ("lfm3_vl", "attn_output = attn_output.reshape(*input_shape, -1).contiguous()", "attn_output = attn_output.reshape(*input_shape, -1) * len(attn_weights)"),
    "lengths that are used": ("lfm3_vl", "            attn_output = torch.cat(attn_outputs, dim=1)\n            # frames", "            attn_output = torch.cat(attn_outputs, dim=1) * lengths.max()\n            # frames"),
    "another order": ("lfm3_vl", "for q, k, v in zip(*splits):", "for k, q, v in zip(*splits):"),
    "the second result": ("lfm3_vl", "                attn_outputs.append(attn_output)\n", "                attn_outputs.append(attn_weight)\n"),
    "another test of the weights": ("radio", "if outputs[0][1] is not None:", "if outputs[-1][1] is not None:"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_what_is_not_the_same_is_left_alone(name: str, tmp_path: Path) -> None:
    model, before, after = EDITS[name]
    root = copy_upstream(tmp_path / "edited")
    edit_upstream(root, modeling(model), before, after)
    tree = Trees(folder(root)).method(Ref(file=modeling(model), name=FORMS[model]), "forward")
    assert find(tree) is None


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder of packages with a rewritten attention of each kind."""
    root = tmp_path_factory.mktemp("packed")
    for model in ("lfm3_vl", "radio", "video_llama_3"):
        place = root / "packed_models" / model
        place.mkdir(parents=True)
        for path, text in generate(model, source()).files.items():
            (place / path).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(root))
    yield "packed_models"
    sys.path.remove(str(root))


def attentions(package: str, model: str, config: Any, *arguments: Any) -> tuple[Any, Any]:
    """Upstream's attention and the generated one, with equal weights."""
    config._attn_implementation = "sdpa"
    name = FORMS[model]
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    torch.manual_seed(0)
    theirs = getattr(module, name)(config, *arguments).eval()
    ours = getattr(importlib.import_module(f"{package}.{model}.modeling_{model}"), name)(config, *arguments).eval()
    ours.load_state_dict(theirs.state_dict())
    assert type(ours).forward is not type(theirs).forward
    return theirs, ours


def inputs(model: str, total: int, heads: int, dim: int) -> dict[str, Any]:
    hidden = torch.randn(total, heads * dim, generator=torch.Generator().manual_seed(total))
    if model == "radio":
        return {"hidden_states": hidden.unsqueeze(0)}
    angles = torch.randn(total, dim, generator=torch.Generator().manual_seed(1))
    return {"hidden_states": hidden, "position_embeddings": (angles.cos(), angles.sin())}


CONFIGS = {
    "lfm3_vl": ("Lfm3VlVisionConfig", {"num_key_value_heads": 2}, (0,)),
    "radio": ("RadioConfig", {}, ()),
    "video_llama_3": ("VideoLlama3VisionConfig", {}, ()),
}


@pytest.mark.parametrize("model", CONFIGS)
def test_one_graph_computes_what_the_loop_does(built: str, model: str) -> None:
    name, changes, arguments = CONFIGS[model]
    module = importlib.import_module(f"transformers.models.{model}.configuration_{model}")
    config = getattr(module, name)(hidden_size=64, num_attention_heads=4, **changes)
    theirs, ours = attentions(built, model, config, *arguments)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="eager")
    for ends in ([0, 5, 6, 20], [0, 12, 31], [0, 1, 2, 3, 9]):
        given = inputs(model, ends[-1], 4, 16) | {"cu_seqlens": torch.tensor(ends, dtype=torch.int32)}
        with torch.no_grad():
            expected, weights = theirs(**copy.deepcopy(given))
            output, ours_weights = compiled(**given)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
        # Upstream's list of one None for each segment is a None where it's said to be "a tensor or None".
        assert weights is None or weights == [None] * (len(ends) - 1)
        assert ours_weights is None
        # Outside of a graph upstream's own method runs.
        assert torch.equal(ours(**given)[0], expected)


def test_causality_that_the_module_decides_is_asked_for(built: str) -> None:
    config = transformers.RadioConfig(hidden_size=64, num_attention_heads=4)
    theirs, ours = attentions(built, "radio", config)
    theirs.is_causal = ours.is_causal = True
    given = inputs("radio", 9, 4, 16) | {"cu_seqlens": torch.tensor([0, 4, 9], dtype=torch.int32)}
    torch._dynamo.reset()
    with torch.no_grad():
        output = torch.compile(ours, backend="eager")(**given)[0]
        torch.testing.assert_close(output, theirs(**given)[0], rtol=0, atol=1e-6)
        theirs.is_causal = False
        assert not torch.allclose(output, theirs(**given)[0])


def test_a_mask_that_is_given_is_not_lost(built: str) -> None:
    module = importlib.import_module("transformers.models.lfm3_vl.configuration_lfm3_vl")
    config = module.Lfm3VlVisionConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    theirs, ours = attentions(built, "lfm3_vl", config, 0)
    mask = torch.full((1, 1, 1, 8), 0.0)
    mask[..., 0] = float("-inf")
    given = inputs("lfm3_vl", 16, 4, 16) | {"cu_seqlens": torch.tensor([0, 8, 16], dtype=torch.int32)}
    torch._dynamo.reset()
    with torch.no_grad():
        output = torch.compile(ours, backend="eager")(**given, attention_mask=mask)[0]
        torch.testing.assert_close(output, theirs(**given, attention_mask=mask)[0], rtol=0, atol=1e-6)
        assert not torch.allclose(output, theirs(**given)[0])


def test_the_rewritten_methods_read_like_upstream_s() -> None:
    text = generate("radio", source()).files["modeling_radio.py"]
    node = next(
        each for each in ast.parse(text).body if isinstance(each, ast.ClassDef) and each.name == FORMS["radio"]
    )
    method = ast.unparse(next(each for each in node.body if isinstance(each, ast.FunctionDef)))
    assert "if not torch.compiler.is_compiling() or getattr(self, 'is_causal', True):" in method
    assert (
        "attn_output = packed_attention(attention_interface, self, query_states, key_states, value_states, cu_seqlens, "
        "**attention_kwargs, **kwargs)\n        attn_weights = None" in method
    )
    assert "splits" not in method
