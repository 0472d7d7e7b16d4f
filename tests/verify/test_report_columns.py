"""What `vgen verify` found stands in the report for the very packages that it found it of, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vgen.codegen.catalogue import all_packages
from vgen.codegen.package import Package
from vgen.codegen.report import Report, make_report
from vgen.codegen.show.report import render
from vgen.codegen.source import Source, installed
from vgen.codegen.verified import State, Verified
from vgen.verify.cases import Sweep, digest
from vgen.verify.packages import digest as package_digest
from vgen.verify.results import Case, Difference, Entry, Finding, Kind, Proof, Record, Region, Settings, Verdict

GAP = Difference(absolute=3e-8, relative=1e-7, allowed=1e-5, where="logits")


@pytest.fixture(scope="module")
def source() -> Source:
    return installed()


@pytest.fixture(scope="module")
def packages(source: Source) -> dict[str, Package]:
    return {each.model: each for each in all_packages(source, ("bert", "llava", "clip")) if isinstance(each, Package)}


def settings(source: Source, **changes: str) -> Settings:
    fields = {"backend": "eager", "device": "cpu", "dtype": "float32", "torch": "2.13.0", "level": "whole"}
    fields |= {"transformers": source.version, "sweep": digest(Sweep.WHOLE)}
    return Settings(**(fields | changes))


def proof(packages: dict[str, Package], model: str, *uses: str, **changes: object) -> Proof:
    digests = {
        name: package_digest({path: text.encode() for path, text in packages[name].files.items()})
        for name in (model, *uses)
    }
    region = Region(
        tag=f"{model}.encoder", name="Model", role="encoder", cases=2, exact=1, calls=5, compiles=2, graphs=2, variants=3,
        breaks=1, difference=GAP, reason="rounding", fallbacks={"it can't be compiled: why": 2},
    )  # fmt: skip
    case = Case(name="first", verdict=Verdict.AS_COMPILED, difference=GAP, regions=(region.tag,))
    entry = Entry(name="Model", model_types=(model,), cases=(case,), regions=(region,))
    found = Proof(model=model, digest=digests[model], uses={name: digests[name] for name in uses}, entries=(entry,))
    return replace(found, **changes)  # type: ignore[arg-type]


def report(source: Source, packages: dict[str, Package], with_: Settings, *proofs: Proof) -> Report:
    return make_report(source, packages.values(), Record().updated(with_, {each.model: each for each in proofs}))


def of(found: Report, model: str) -> Verified | None:
    return next(row.verified for row in found.rows if row.model == model)


def test_without_a_record_there_are_no_columns(source: Source, packages: dict[str, Package]) -> None:
    found = make_report(source, packages.values())
    assert not found.is_verified
    assert all("largest difference" not in text for text in render(found).values())


def test_figures_are_those_of_the_record(source: Source, packages: dict[str, Package]) -> None:
    found = report(source, packages, settings(source), proof(packages, "bert"))
    assert of(found, "bert") == Verified(
        state=State.PROVED,
        settings="eager, cpu, float32, whole sweep, torch 2.13.0",
        difference="3e-08 (1e-07)",
        compiles="2 for 3 variants",
        fallbacks="2 of 5 calls",
        reasons=("it can't be compiled: why",),
    )
    assert of(found, "clip") is None
    assert found.verification == (("proved", 1),)
    texts = render(found)
    (row,) = (line for line in texts["support.md"].splitlines() if line.startswith("| bert |"))
    assert "| proved | 3e-08 (1e-07) | 2 for 3 variants | 2 of 5 calls | built |" in row
    (row,) = (line for line in texts["support.md"].splitlines() if line.startswith("| clip |"))
    assert row.endswith("| – | – | – | – | built |")
    head, rule, *rows = (line for line in texts["support.md"].splitlines() if line.count("|") > 8)
    assert {line.count("|") for line in (head, rule, *rows)} == {15}
    assert "3e-08 (1e-07)" in texts["support.html"]


def test_findings_stand_in_the_place_of_proved(source: Source, packages: dict[str, Package]) -> None:
    findings = (
        Finding(kind=Kind.RECOMPILE, message="twice"),
        Finding(kind=Kind.WRONG, message="logits differ"),
        Finding(kind=Kind.FALLBACK, message="why"),
    )
    found = report(source, packages, settings(source), proof(packages, "bert", findings=findings))
    verified = of(found, "bert")
    assert verified is not None
    assert (verified.state, verified.findings) == (State.FINDINGS, ("1 wrong result", "1 recompile"))
    nothing = Finding(kind=Kind.UNPROVED, message="upstream can't be made")
    found = report(source, packages, settings(source), proof(packages, "bert", entries=(), findings=(nothing,)))
    verified = of(found, "bert")
    assert verified is not None
    assert (verified.state, verified.findings) == (State.UNPROVED, ("upstream can't be made",))
    assert verified.difference is verified.compiles is verified.fallbacks is None


def test_what_is_of_other_files_is_stale(source: Source, packages: dict[str, Package]) -> None:
    stale = Verified(state=State.STALE)
    good = proof(packages, "llava", "clip")
    assert of(report(source, packages, settings(source), good), "llava") != stale
    for other in (replace(good, digest="0"), replace(good, uses={"clip": "0"}), replace(good, uses={"pixtral": "0"})):
        assert of(report(source, packages, settings(source), other), "llava") == stale
    for changes in ({"sweep": "0"}, {"transformers": "5.0.0"}, {"level": "short"}):
        assert of(report(source, packages, settings(source, **changes), good), "llava") == stale


def test_the_whole_sweep_counts_before_the_short_one(source: Source, packages: dict[str, Package]) -> None:
    short = settings(source, level="short", sweep=digest(Sweep.SHORT))
    bert = {"bert": proof(packages, "bert")}
    record = (
        Record()
        .updated(short, bert)
        .updated(settings(source), bert)
        .updated(settings(source, backend="inductor"), bert)
    )
    verified = of(make_report(source, packages.values(), record), "bert")
    assert verified is not None
    assert verified.settings is not None
    assert verified.settings.startswith("eager, cpu, float32, whole sweep")
