"""Branches that clamp what overflowed: all of them are found, and a graph chooses what the branch would have left."""

from __future__ import annotations

import re
from pathlib import Path

import built
import pytest
import torch

import vgen.runtime as runtime
from vgen.codegen.analyze.clamps import find
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.facts import Ref
from vgen.codegen.source import installed

BRANCH = re.compile(r"^ +if .*torch\.(isinf|isnan|isfinite)\(", re.M)


def test_every_branch_is_found() -> None:
    source = installed()
    trees, count = Trees(source), 0
    for model in source.models():
        file = source.modeling_file(model)
        for definition in file.definitions.values() if BRANCH.search(file.text) else ():
            lines = "".join(f"{line}\n" for line in file.lines[definition.first_line - 1 : definition.last_line])
            wanted = len(BRANCH.findall(lines))
            if wanted and definition.is_class:
                found = len(find(trees.method(Ref(file=file.rel, name=definition.name), "forward")))
                assert found == wanted, f"{file.rel}: {definition.name}"
                count += found
    assert count > 30


@pytest.mark.parametrize(
    ("package", "name", "scale", "dtype"),
    [
        ("detr", "DetrModel", 1.0, torch.float32),
        ("detr", "DetrModel", 3e38, torch.float32),
        ("bart", "BartModel", 1.0, torch.float16),
        ("bart", "BartModel", 6e4, torch.float16),
    ],
)
def test_values_and_gradients_are_upstreams(
    package: str, name: str, scale: float, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    upstream, generated = upstream.to(dtype), generated.to(dtype)
    with torch.no_grad():
        # What the encoder's last layer ends with overflows, where the scale is at the dtype's end.
        for model in (upstream, generated):
            model.encoder.layers[-1].final_layer_norm.weight.fill_(scale)
    inputs = {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in made.inputs.items()
    }
    theirs = built.require_equal_steps(upstream, generated, inputs, result="encoder_last_hidden_state")
    peak = theirs["encoder_last_hidden_state"].abs().max()
    assert (peak == torch.finfo(dtype).max - 1000) == (scale > 1)
    assert not any(count.fallbacks for tag, count in runtime.counters().items() if "encoder" in tag)
