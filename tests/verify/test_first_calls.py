"""Models whose first call changes their modules, and draws random numbers for it: upstream's and the generated one begin alike."""

from __future__ import annotations

import copy
from pathlib import Path

import built
import pytest
import torch

from vgen.verify.cases import BY_LAYER, Sweep
from vgen.verify.judge import Stock, judge
from vgen.verify.pair import Pair, runtime_of
from vgen.verify.results import Finding, Kind, Verdict
from vgen.verify.runs import Instances, Setup, execute, expect

SETUP = Setup(sweep=Sweep.SHORT)


def bigbird(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Its encoder leaves sparse attention at the first short text, and makes modules for the other kind."""
    upstream, generated, made = built.built_pair("bigbird_pegasus", "BigBirdPegasusModel", tmp_path, monkeypatch)
    runtime = runtime_of(type(generated))
    regions = tuple(name for name, part in generated.named_modules() if isinstance(part, runtime.module.Compiled))
    return Pair(
        upstream=upstream.eval(),
        generated=generated.eval(),
        config=made.config,
        runtime=runtime,
        regions=regions,
        same_weights=True,
    )


def judged(pair: Pair) -> tuple[list[Verdict], list[Finding]]:
    """The cases in which layers are left out, after all cases ran in upstream."""
    stocks, models, findings = Stock(copy.deepcopy(pair.upstream), pair), Instances(pair), list[Finding]()
    runs = [run for run in expect(pair, models, {}, SETUP) if run.case in BY_LAYER]
    assert len(runs) == len(BY_LAYER)
    verdicts = []
    for run in runs:
        execute(run, models.generated(run.case.instance), findings, pair)
        result = judge(run, stocks, SETUP, findings)
        assert result is not None
        verdicts.append(result.verdict)
    return verdicts, findings


def test_they_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts, findings = judged(bigbird(tmp_path, monkeypatch))
    assert verdicts == [Verdict.EXACT] * len(BY_LAYER)
    assert not findings


def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = bigbird(tmp_path, monkeypatch)
    with torch.no_grad():
        pair.generated.decoder.layers[0].fc2.bias += 1e-3
        pair.generated.decoder.layers[1].fc2.bias += 1e-3
    verdicts, findings = judged(pair)
    assert verdicts == [Verdict.WRONG] * len(BY_LAYER)
    assert {each.kind for each in findings} == {Kind.WRONG}
