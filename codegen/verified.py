"""What `vgen verify` found of a package, as the report shows it: only what was measured of these very files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ..verify.cases import Sweep, digest
from ..verify.results import FAILING, Difference, Kind, Proof, Record, Run


class State(StrEnum):
    """STALE: other files, another sweep or another Transformers than now. UNPROVED: upstream gave nothing to compare with."""

    PROVED = "proved"
    FINDINGS = "findings"
    UNPROVED = "not run"
    STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """One package. Texts are None where there is no figure.

    Attributes:
        settings: Backend, device, dtype and sweep.
        findings: `2 recompile`, the worst first; where nothing ran, why.
        difference: `0`, or the largest: absolute, and relative to the largest value of its tensor.
        compiles: `3 for 3 variants`.
        fallbacks: `1 of 20 calls`.
    """

    state: State
    settings: str | None = None
    findings: tuple[str, ...] = ()
    difference: str | None = None
    compiles: str | None = None
    fallbacks: str | None = None
    reasons: tuple[str, ...] = ()


def verified(model: str, record: Record, digests: Mapping[str, str], transformers: str) -> Verified | None:
    """What the record says of a package, None if nothing. The whole sweep counts before the short one.

    Args:
        model: The package.
        record: What was found.
        digests: Package → what stands for its files now (`verify.packages.digest`).
        transformers: The version that the packages are built from.
    """
    known = [(run, run.by_model[model]) for run in _ordered(record) if model in run.by_model]
    for run, proof in known:
        if _is_current(run, proof, digests, transformers):
            return _shown(run, proof)
    return Verified(state=State.STALE) if known else None


def _ordered(record: Record) -> list[Run]:
    """What is most exact first: the eager backend has to be equal to the last bit."""
    return sorted(
        record.runs,
        key=lambda run: (run.settings.backend != "eager", run.settings.level != Sweep.WHOLE.value, run.settings.name),
    )


def _is_current(run: Run, proof: Proof, digests: Mapping[str, str], transformers: str) -> bool:
    settings = run.settings
    if settings.transformers != transformers or settings.sweep != digest(Sweep(settings.level)):
        return False
    used = {proof.model: proof.digest, **proof.uses}
    return all(digests.get(name) == value for name, value in used.items())


def _shown(run: Run, proof: Proof) -> Verified:
    settings = f"{run.settings.name}, torch {run.settings.torch}"
    failing = Counter(finding.kind for finding in proof.all_findings if finding.kind in FAILING)
    words = tuple(f"{failing[kind]} {kind.value}" for kind in Kind if failing[kind])
    if not any(entry.cases for entry in proof.entries):
        reasons = tuple(f"{finding.message}" for finding in proof.all_findings[:1])
        return Verified(
            state=State.FINDINGS if words else State.UNPROVED, settings=settings, findings=words or reasons
        )
    regions = proof.regions
    calls = sum(region.calls for region in regions)
    fell = Counter[str]()
    for region in regions:
        fell.update(region.fallbacks)
    return Verified(
        state=State.PROVED if proof.is_proved else State.FINDINGS,
        settings=settings,
        findings=words,
        difference=gap(proof.difference),
        compiles=f"{sum(r.compiles for r in regions)} for {sum(r.variants for r in regions)} variants",
        fallbacks=f"{fell.total()} of {calls} calls",
        reasons=tuple(sorted(fell)),
    )


def gap(difference: Difference | None) -> str:
    """`3e-08 (1e-07)`: absolute, and relative to the largest value of the tensor."""
    return "0" if difference is None else f"{difference.absolute:.1g} ({difference.relative:.1g})"
