"""`vgen verify` and its pytest plugin, on a good package and on packages that were broken by hand, all with real models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import run_python, run_vgen
from leaving import leaving

from vgen.codegen import output
from vgen.verify import packages, record, run
from vgen.verify.cases import Sweep
from vgen.verify.results import (
    Case,
    Difference,
    Entry,
    Finding,
    Kind,
    Proof,
    Record,
    Region,
    Settings,
    Verdict,
    decode_proof,
    decode_record,
    encode,
    without_seconds,
)

CORE = "        return super().forward(\n"
"""The line that the packages below are broken at: the last of its kind in the file is that of bert's core."""
BROKEN = {
    "bert_wrong": ("            attention_mask=attention_mask,\n", "            attention_mask=None,\n"),
    "bert_breaks": (CORE, f"        torch._dynamo.graph_break()\n{CORE}"),
    "bert_recompiles": (
        CORE,
        f"        kwargs |= {{}} if input_ids is None or input_ids.shape[1] < 12 else {{}}\n{CORE}",
    ),
}


@dataclass(frozen=True)
class Zoo:
    root: Path
    """The working directory; the packages lie in `zoo` below it."""
    environment: dict[str, str]

    @property
    def remembered(self) -> dict[str, int]:
        """Package → when its proof was written."""
        return {
            path.name.rpartition("-")[0]: path.stat().st_mtime_ns
            for path in self.root.glob("cache/vgen-verify/*/*.json")
        }

    def verify(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_vgen("verify", *arguments, "--sweep", "short", "--out", "zoo", cwd=self.root, **self.environment)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    root = tmp_path_factory.mktemp("verify")
    good = output.default_folder() / "bert"
    for name in ("bert", *BROKEN):
        shutil.copytree(good, root / "zoo" / name, ignore=shutil.ignore_patterns("__pycache__"))
        path = root / "zoo" / name / "modeling_bert.py"
        if name in BROKEN:
            old, new = BROKEN[name]
            text = path.read_text(encoding="utf-8")
            before, found, core = text.partition("    def core(")
            assert found
            assert old in core
            path.write_text(before + found + core.replace(old, new, 1), encoding="utf-8")
    environment = {"XDG_CACHE_HOME": str(root / "cache"), "VGEN_CACHE": "", "OMP_NUM_THREADS": "1"}
    return Zoo(root=root, environment=environment)


@pytest.fixture(scope="module")
def proved(zoo: Zoo) -> dict[str, Proof]:
    """All of them, by a run that was killed when it had proved the first, and another that went on."""
    command = [sys.executable, "-m", "vgen.cli", "verify", "--all", "--sweep", "short", "--out", "zoo", "--jobs", "1"]
    running = subprocess.Popen(
        command, cwd=zoo.root, env={**os.environ, **zoo.environment}, stdout=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not zoo.remembered and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    first = zoo.remembered
    assert first, "it was killed in the middle"
    assert len(first) < 1 + len(BROKEN)
    done = zoo.verify("--all", "--jobs", "2", "--json", "--record", "record")
    assert done.returncode == 1, done.stderr
    for name, when in first.items():
        assert zoo.remembered[name] == when, "it was proved again"
    found = decode_record(done.stdout.encode())
    assert len(found.runs) == 1
    return dict(found.runs[0].by_model)


def kinds(proof: Proof) -> set[Kind]:
    return {finding.kind for finding in proof.all_findings}


def test_a_good_package_is_proved(proved: dict[str, Proof]) -> None:
    proof = proved["bert"]
    assert proof.is_proved
    assert kinds(proof) == set()
    (entry,) = proof.entries
    assert {case.verdict for case in entry.cases} == {Verdict.EXACT}
    assert len(entry.cases) == 5
    assert entry.model_types == ("bert",)
    assert set(entry.checks) >= {"state", "save and load", "pickle", "deepcopy", "hooks", "untouched", "equal seeds"}
    (region,) = entry.regions
    assert (region.tag, region.role, region.compiles, region.variants, region.breaks) == (
        "bert.encoder",
        "encoder",
        2,
        2,
        0,
    )
    assert region.is_captured
    assert region.exact == region.cases == 5


def proved_alone(model: str, tmp_path: Path) -> Proof:
    assert run_vgen("build", model, "--out", "zoo", cwd=tmp_path).returncode == 0
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "VGEN_CACHE": "", "OMP_NUM_THREADS": "1"}
    command = ("verify", model, "--sweep", "short", "--out", "zoo", "--json")
    done = run_vgen(*command, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    return decode_record(done.stdout.encode()).runs[0].by_model[model]


def test_graphs_for_other_states_are_no_findings(tmp_path: Path) -> None:
    proof = proved_alone("recurrent_gemma", tmp_path)
    assert kinds(proof) == set()
    (region,) = proof.entries[0].regions
    assert region.is_captured
    # Without their own, it would have compiled more often than it has variants.
    assert region.compiles == region.variants == 7


def test_a_region_inside_of_another_is_proved_by_itself(tmp_path: Path) -> None:
    model = "pocket_tts_audio_tokenizer"
    proof = proved_alone(model, tmp_path)
    assert kinds(proof) == set()
    assert sorted(each for entry in proof.entries for each in entry.model_types) == [
        model,
        f"{model}_decoder",
        f"{model}_encoder",
    ]
    for entry in proof.entries:
        # The model that has both halves runs them in its own graph.
        (region,) = entry.regions
        assert region.is_captured
        assert region.exact == region.cases > 0


def test_a_wrong_line_is_a_wrong_result(proved: dict[str, Proof], zoo: Zoo) -> None:
    proof = proved["bert_wrong"]
    assert not proof.is_proved
    wrong = [finding for finding in proof.all_findings if finding.kind is Kind.WRONG]
    assert wrong
    assert proof.all_findings[0].kind is Kind.WRONG
    assert all(finding.region == "bert.encoder" and "differs" in finding.message for finding in wrong)
    padded = {finding.case for finding in wrong}
    assert "2 samples of 9 tokens, padded left" in padded
    assert not any("no mask" in str(name) for name in padded)


def test_a_break_falls_back_with_a_correct_result(proved: dict[str, Proof]) -> None:
    proof = proved["bert_breaks"]
    assert proof.is_proved
    assert kinds(proof) == {Kind.FALLBACK}
    (region,) = proof.regions
    assert (region.compiles, region.exact) == (0, region.cases)
    assert sum(region.fallbacks.values()) == region.calls
    assert not region.is_captured
    assert all(reason.startswith("it can't be compiled") for reason in region.fallbacks)


def test_a_branch_on_a_size_is_a_recompile(proved: dict[str, Proof]) -> None:
    proof = proved["bert_recompiles"]
    assert not proof.is_proved
    (finding,) = [each for each in proof.all_findings if each.kind is Kind.RECOMPILE]
    assert "2 x 17, padded left" in finding.message
    assert all(case.verdict is Verdict.EXACT for entry in proof.entries for case in entry.cases)


def test_what_is_shown_begins_with_the_wrong_results(proved: dict[str, Proof], zoo: Zoo) -> None:
    done = zoo.verify("--all")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("WRONG RESULTS")
    assert lines[1].split()[0] == "bert_wrong"
    assert any(line.startswith("2 of 4 packages proved") for line in lines)
    assert not any(len(line) > 100 for line in lines)
    good = zoo.verify("bert")
    assert good.returncode == 0
    assert "WRONG" not in good.stdout
    assert "1 of 1 packages proved" in good.stdout


def test_the_record_has_every_proof_and_no_times(proved: dict[str, Proof], zoo: Zoo) -> None:
    (path,) = (zoo.root / "record").iterdir()
    found = decode_record(path.read_bytes())
    assert found.runs[0].by_model == {name: without_seconds(proof) for name, proof in proved.items()}
    before = path.read_bytes()
    assert zoo.verify("bert", "--record", "record").returncode == 0
    assert path.read_bytes() == before
    digest = packages.digest_on_disk(zoo.root / "zoo" / "bert")
    assert found.runs[0].by_model["bert"].digest == digest


PLUGIN = ("-m", "pytest", "-p", "vgen.verify.pytest_plugin", "-p", "no:cacheprovider", "--vgen-verify", "zoo")


def test_the_pytest_plugin_proves_a_folder(proved: dict[str, Proof], zoo: Zoo) -> None:
    (zoo.root / "pytest.ini").write_text("[pytest]\ntestpaths = none\n")
    done = run_python([*PLUGIN, "--vgen-sweep", "short", "-rfs"], cwd=zoo.root, timeout=600, **zoo.environment)
    assert done.returncode == 1, done.stdout
    assert "bert_wrong: wrong result: bert.encoder, 2 samples of 9 tokens, padded left" in done.stdout
    assert "Traceback" not in done.stdout
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == {f"vgen::zoo/{name}" for name in ("bert_wrong[forward]", "bert_recompiles[compiles]")}
    assert "4 skipped" in done.stdout, "none of them generates"
    some = run_python(
        [*PLUGIN, "--vgen-sweep", "short", "-k", "bert and not bert_", "-q"],
        cwd=zoo.root,
        timeout=600,
        **zoo.environment,
    )
    assert some.returncode == 0, some.stdout


def test_the_plugin_imports_nothing_heavy() -> None:
    code = "import sys, vgen.verify.pytest_plugin; print([name for name in ('torch', 'transformers', 'libcst') if name in sys.modules])"
    assert run_python(["-c", code]).stdout.strip() == "[]"


def test_a_folder_without_packages_is_told(tmp_path: Path) -> None:
    for options in ("-n 0", "-n 2"):  # in the process itself, and where workers collect
        done = run_python([*PLUGIN[:-1], "nothing"], cwd=tmp_path, PYTEST_ADDOPTS=options)
        assert done.returncode == 4
        assert "There is no generated package in" in done.stderr
    command = run_vgen("verify", "--all", "--out", "nothing", cwd=tmp_path)
    assert command.returncode == 2
    assert command.stderr.startswith("error: There is no generated package in")
    missing = run_vgen("verify", "nothing_like_it")
    assert missing.returncode == 2
    assert "`vgen build nothing_like_it` writes it" in " ".join(missing.stderr.split())
    assert run_vgen("verify").returncode == 2


def some_proof(**changes: Any) -> Proof:
    gap = Difference(absolute=1e-7, relative=2e-7, allowed=1e-5, where="logits")
    case = Case(
        name="first",
        verdict=Verdict.AS_COMPILED,
        difference=gap,
        reason="rounding",
        regions=("a.decoder",),
        seconds=2.0,
    )
    region = Region(
        tag="a.decoder", name="AModel", role="decoder", cases=1, exact=0, calls=3, compiles=1, graphs=1, variants=1,
        breaks=0, difference=gap, reason="rounding", fallbacks={"why": 1}, seconds=2.0,
    )  # fmt: skip
    entry = Entry(
        name="AForCausalLM", model_types=("a",), cases=(case,), regions=(region,), checks=("state",),
        skipped={"video": "no"}, findings=(Finding(kind=Kind.FALLBACK, message="why", region="a.decoder"),), seconds=3.0,
    )  # fmt: skip
    fields: dict[str, Any] = {"model": "a", "digest": "0", "uses": {"b": "1"}, "entries": (entry,), "seconds": 3.0}
    return Proof(**(fields | changes))


def test_results_go_there_and_back(tmp_path: Path) -> None:
    proof = some_proof()
    assert decode_proof(encode(proof)) == proof
    settings = Settings(
        backend="eager", device="cpu", dtype="float32", torch="2", transformers="5.0.0", level="short", sweep="s"
    )
    path = record.update(tmp_path, settings, [proof])
    assert record.read(path).runs[0].by_model == {"a": without_seconds(proof)}
    assert json.loads(path.read_text())["runs"][0]["proofs"][0]["model"] == "a"
    record.update(tmp_path, settings, [some_proof(model="b")])
    assert list(record.read(path).runs[0].by_model) == ["a", "b"]
    # Another PyTorch: what the older one gave can't stand in the same table.
    other = Settings(
        backend="eager", device="cpu", dtype="float32", torch="3", transformers="5.0.0", level="short", sweep="s"
    )
    record.update(tmp_path, other, [some_proof(model="c")])
    assert [list(run.by_model) for run in record.read(path).runs] == [["c"]]
    inductor = Settings(
        backend="inductor", device="cpu", dtype="float32", torch="3", transformers="5.0.0", level="short", sweep="s"
    )
    record.update(tmp_path, inductor, [some_proof()])
    assert [run.settings.backend for run in record.read(path).runs] == ["eager", "inductor"]


def test_a_process_that_makes_way_takes_no_package_along(
    zoo: Zoo, proved: dict[str, Proof], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "work", leaving)
    models = tuple(sorted(proved))[:3]
    request = run.Request(
        folder=zoo.root / "zoo",
        models=models,
        backend="eager",
        device="cpu",
        dtype="float32",
        sweep=Sweep.SHORT,
        jobs=1,
        fresh=True,
    )
    found = {proof.model: kinds(proof) for proof in run.run(request)}
    assert found == {model: kinds(proved[model]) for model in models}


def test_a_broken_record_is_told_before_anything_runs(tmp_path: Path) -> None:
    import importlib.metadata

    version = importlib.metadata.version("transformers")
    (tmp_path / f"{version}.json").write_text("{")
    done = run_vgen("verify", "bert", "--record", str(tmp_path))
    assert done.returncode == 2
    assert f"{version}.json can't be read" in " ".join(done.stderr.split())
    assert Record() == record.read(tmp_path / "0.json")
