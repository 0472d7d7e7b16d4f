"""Models inside of a region that record hidden states for themselves: what the region records goes on after them."""

from __future__ import annotations

from pathlib import Path

import built
import pytest

import vgen.runtime as runtime
from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.model import analyze
from vgen.codegen.analyze.recorders import of_class
from vgen.codegen.facts import Ref
from vgen.codegen.plan import Granularity, Rule
from vgen.codegen.planning import make_plan
from vgen.codegen.source import installed

HIDDEN = "output_hidden_states"
WANTED = ({HIDDEN: True}, {HIDDEN: True, "output_attentions": True})


def model(name: str, package: str) -> Ref:
    return Ref(file=f"transformers/models/{package}/modeling_{package}.py", name=name)


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        (model("ChameleonVQVAE", "chameleon"), ["encode"]),
        (model("GitModel", "git"), ["forward"]),
        (model("MT5EncoderModel", "mt5"), []),
    ],
    ids=str,
)
def test_methods_that_record(ref: Ref, expected: list[str]) -> None:
    assert [each.method for each in of_class(Classes(installed()), ref)] == expected


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("chameleon", {("ChameleonVQVAE", "encode")}),
        ("git", {("GitVisionModel", "forward")}),
        # Its layers are graphs, each of them; the model around them records in eager.
        ("pixtral", set()),
        # A model inside records, and the region's forward doesn't.
        ("mt5", set()),
    ],
)
def test_those_inside_of_others_are_changed(package: str, expected: set[tuple[str, str]]) -> None:
    plan = make_plan(analyze(installed(), package), Granularity.AUTO)
    changed = {(each.ref.name, each.method) for each in plan.rewrites if each.rule is Rule.NESTED_RECORDER}
    assert changed == expected


@pytest.mark.parametrize(("package", "name"), [("git", "GitModel"), ("chameleon", "ChameleonModel")])
def test_what_is_recorded_and_its_gradients_are_upstreams(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    assert "pixel_values" in made.inputs
    for each in (upstream, generated):
        each.set_attn_implementation("eager")
    for wanted in WANTED:
        found = built.require_equal_steps(upstream, generated, {**made.inputs, **wanted, "use_cache": False})
        layers = upstream.config.num_hidden_layers
        assert sum(where.startswith("hidden_states") for where in found) == layers + 1
        assert sum(where.startswith("attentions") for where in found) == layers * len(wanted.keys() - {HIDDEN})
    count = runtime.counters()[f"{package}.decoder"]
    assert not count.fallbacks
    assert count.compiles == count.variants == len(WANTED)
