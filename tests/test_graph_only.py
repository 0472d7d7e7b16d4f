"""Branches that only a graph takes: all of them are found, and no graph that took one runs."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import built
import pytest
import torch

import vgen.runtime as runtime
from vgen.codegen.analyze.graph_only import find
from vgen.codegen.source import installed
from vgen.runtime import size_loops
from vgen.runtime.compiler import ahead_of_time
from vgen.runtime.graph_only import GraphOnlyError
from vgen.runtime.probing import ProbeError


def lines(code: str) -> list[str]:
    """The first line of each branch that is found in a function of that body."""
    body = code.strip("\n").splitlines()
    (function,) = ast.parse("\n".join(["def function(self, x):", *(f"    {line}" for line in body)])).body
    assert isinstance(function, ast.FunctionDef)
    return [body[each.start - 2].strip() for each in find(function)]


def test_the_scans_of_state_space_models_are_found() -> None:
    source = installed()
    found = {
        (model, name)
        for model in source.models()
        for file in (source.modeling_file(model),)
        if "compiling()" in file.text
        for name, definition in file.definitions.items()
        for function in ast.walk(definition.node)
        if isinstance(function, ast.FunctionDef) and find(function)
    }
    assert found == {(model, "mamba_selective_scan") for model in ("falcon_mamba", "jamba", "mamba", "zamba")}


@pytest.mark.parametrize(
    "code",
    [
        "if is_torchdynamo_compiling():\n    y = x + 1\nelse:\n    y = 1 + x",
        "if self.fast and (is_torchdynamo_compiling() and not is_torchdynamo_exporting()):\n    y = x + 1\nelse:\n    y = 1 + x",
        "if not is_torchdynamo_compiling():\n    y = 1 + x\nelse:\n    y = x + 1",
        "if not torch.compiler.is_compiling() or self.slow:\n    y = 1 + x\nelse:\n    y = x + 1",
        "for _ in x:\n    if is_torchdynamo_compiling():\n        y = x + 1\n    else:\n        y = 1 + x",
        "if torch.compiler.is_compiling():\n    return x + 1\nreturn 1 + x",
    ],
)
def test_what_computes_the_same_in_another_way_is_found(code: str) -> None:
    (line,) = lines(code)
    assert line in ("y = x + 1", "return x + 1")


@pytest.mark.parametrize(
    "code",
    [
        "if not is_torchdynamo_compiling():\n    logger.warning('slow')",
        "if not is_torchdynamo_compiling() and x > self.limit:\n    raise ValueError(x)",
        "if is_torchdynamo_compiling() or self.fast:\n    y = x + 1\nelse:\n    y = 1 + x",
        "if torch.jit.is_tracing_now():\n    y = x + 1\nelse:\n    y = 1 + x",
        "if is_torchdynamo_compiling():\n    a = x\nelse:\n    logger.warning('eager')",
    ],
)
def test_what_eager_takes_too_or_does_without_is_left(code: str) -> None:
    assert lines(code) == []


@pytest.fixture
def without_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """No function can be an operator: a scan is traced then."""
    monkeypatch.setattr(size_loops, "probe", refused)


def refused(*_: Any) -> Any:
    raise ProbeError("none can")


@pytest.mark.usefixtures("without_operators")
def test_a_scan_that_is_traced_runs_as_in_eager_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("mamba", "MambaForCausalLM", tmp_path, monkeypatch)
    built.require_equal_steps(upstream, generated, dict(made.inputs), result="logits")
    (count,) = runtime.counters().values()
    assert count.graphs == 0
    (reason,) = count.fallbacks
    assert reason.startswith("it can't be compiled: in a graph upstream takes modeling_mamba.py:")


@pytest.mark.usefixtures("without_operators")
def test_no_artifact_is_made_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, generated, _ = built.built_pair("mamba", "MambaForCausalLM", tmp_path, monkeypatch)
    module = generated.eval().backbone
    parameters = list(inspect.signature(type(module).core).parameters.values())[1:]
    arguments: dict[str, Any] = {each.name: None for each in parameters if each.kind is not each.VAR_KEYWORD}
    arguments |= {"input_ids": torch.ones(1, 5, dtype=torch.long), "use_cache": False}
    with torch.no_grad(), pytest.raises(GraphOnlyError, match=r"in a graph upstream takes modeling_mamba\.py:"):
        ahead_of_time(
            type(module).core,
            module,
            arguments,
            options=module.vgen_options,
            is_shared=False,
            is_padded=False,
            has_fixed_ints=False,
            graph_only=module.region.graph_only,
            is_plain=False,
            keeps=lambda _: True,
        )
