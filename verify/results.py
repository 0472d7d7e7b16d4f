"""What was found of each package, as data, and its form on disk. Neither torch nor Transformers is needed to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import msgspec


class Verdict(StrEnum):
    """How the results of one case compare with upstream's.

    EXACT: equal to the last bit. AS_COMPILED: equal to the last bit to what upstream's own code gives under
    `torch.compile`, which differs from upstream in eager by rounding. CLOSE: within what a backend that fuses may differ.
    UNSTABLE: upstream in eager differs from itself. WRONG: none of these.
    """

    EXACT = "exact"
    AS_COMPILED = "as upstream compiled"
    CLOSE = "close"
    UNSTABLE = "upstream unstable"
    WRONG = "wrong"


class Kind(StrEnum):
    """Kinds of findings, the worst first."""

    WRONG = "wrong result"
    ERROR = "error"
    CHECK = "check"
    CRASH = "crash"
    MEMORY = "out of memory"
    TIMEOUT = "timeout"
    RECOMPILE = "recompile"
    VARIANTS = "variants"
    BRANCH = "branch"
    FALLBACK = "fallback"
    NOT_RUN = "not run"
    UNPROVED = "unproved"


FAILING = frozenset(
    {Kind.WRONG, Kind.ERROR, Kind.CHECK, Kind.CRASH, Kind.MEMORY, Kind.TIMEOUT, Kind.RECOMPILE, Kind.VARIANTS}
)
"""Findings for which the command exits 1. A further compile where upstream's code branches on a limit of the config isn't
among them; a fallback with a reason and a correct result isn't either, nor is a
model of which upstream itself gives nothing to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far a result is from upstream's in eager, at most.

    Attributes:
        absolute: Largest absolute difference of an element.
        relative: The same, divided by the largest magnitude in the tensor that it stands in.
        allowed: The largest relative difference that was allowed; 0 where results have to be equal.
        where: The output, `logits` for one.
    """

    absolute: float
    relative: float
    allowed: float
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case of the sweep on one entry class."""

    name: str
    verdict: Verdict
    difference: Difference | None = None
    reason: str | None = None
    regions: tuple[str, ...] = ()
    fallbacks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    seconds: float = 0.0
    finite: bool = True
    """Whether upstream's results are finite: infinities and NaNs that are equal prove little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region over the sweep.

    Attributes:
        tag: The compile tag.
        name: The class.
        role: "decoder" or "encoder".
        cases: In how many cases it ran.
        exact: In how many of these the model's results were equal to the last bit.
        difference: The largest of the cases in which it ran; None where all were equal.
        reason: Why that difference was allowed.
        calls, compiles, graphs, variants: As `vgen.runtime.RegionCounters`.
        breaks: Variants that couldn't be captured as one graph, and ran uncompiled.
        fallbacks: Calls that ran uncompiled, by reason.
        seconds: How long the cases took in which it ran, compiling included.
    """

    tag: str
    name: str
    role: str
    cases: int
    exact: int
    calls: int
    compiles: int
    graphs: int
    variants: int
    breaks: int
    difference: Difference | None = None
    reason: str | None = None
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_captured(self) -> bool:
        """Every call ran compiled, and nothing compiled more often than it had variants."""
        return self.calls > 0 and not self.fallbacks and self.compiles <= self.variants


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something to know, or to mend. `message` is one line."""

    kind: Kind
    message: str
    case: str | None = None
    region: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry class of a package.

    Attributes:
        name: The class.
        model_types: The model types that it stands for: its own, and those that are parts of it.
        skipped: Cases and checks that don't apply or that upstream can't run, with the reason.
    """

    name: str
    model_types: tuple[str, ...]
    cases: tuple[Case, ...] = ()
    regions: tuple[Region, ...] = ()
    checks: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was found of one package.

    Attributes:
        digest: What stands for its files (`packages.digest`).
        uses: The same of other packages whose classes its models hold.
    """

    model: str
    digest: str
    uses: Mapping[str, str] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0

    @property
    def all_findings(self) -> tuple[Finding, ...]:
        order = list(Kind)
        found = [*self.findings, *(each for entry in self.entries for each in entry.findings)]
        return tuple(sorted(found, key=lambda each: order.index(each.kind)))

    @property
    def is_proved(self) -> bool:
        """Something ran, and nothing failed."""
        return any(entry.cases for entry in self.entries) and not any(
            each.kind in FAILING for each in self.all_findings
        )

    @property
    def regions(self) -> tuple[Region, ...]:
        return tuple(region for entry in self.entries for region in entry.regions)

    @property
    def difference(self) -> Difference | None:
        """The largest of all regions, None where every result was equal."""
        found = [region.difference for region in self.regions if region.difference is not None]
        return max(found, key=lambda each: each.relative, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run compares, and with what: everything but the packages."""

    backend: str
    device: str
    dtype: str
    torch: str
    transformers: str
    level: str
    """Which sweep: `cases.Sweep`."""
    sweep: str
    """The digest of the sweep's definition."""

    @property
    def name(self) -> str:
        return f"{self.backend}, {self.device}, {self.dtype}, {self.level} sweep"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The proofs of one setting, by package."""

    settings: Settings
    proofs: tuple[Proof, ...]

    @cached_property
    def by_model(self) -> Mapping[str, Proof]:
        return {proof.model: proof for proof in self.proofs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is kept of one version of Transformers: `docs/verify/<version>.json`."""

    runs: tuple[Run, ...] = ()

    def run(self, name: str) -> Run | None:
        return next((run for run in self.runs if run.settings.name == name), None)

    def updated(self, settings: Settings, proofs: Mapping[str, Proof]) -> Record:
        """The record with other proofs. Those of a run with other versions or another sweep go: they can't be told apart
        in one table."""
        before = self.run(settings.name)
        kept = dict(before.by_model) if before is not None and before.settings == settings else {}
        kept.update(proofs)
        run = Run(settings=settings, proofs=tuple(kept[model] for model in sorted(kept)))
        others = [each for each in self.runs if each.settings.name != settings.name]
        return Record(runs=tuple(sorted([*others, run], key=lambda each: each.settings.name)))


def without_seconds(proof: Proof) -> Proof:
    """The proof as it is kept: the same wherever and whenever it was made."""
    entries = tuple(
        replace(
            entry,
            seconds=0.0,
            cases=tuple(replace(case, seconds=0.0) for case in entry.cases),
            regions=tuple(replace(region, seconds=0.0) for region in entry.regions),
        )
        for entry in proof.entries
    )
    return replace(proof, entries=entries, seconds=0.0)


def encode(value: Record | Proof) -> bytes:
    """JSON in a form that a diff can be read of."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"


def decode_record(data: bytes) -> Record:
    """Raises `msgspec.DecodeError` where it isn't one."""
    return msgspec.json.decode(data, type=Record)


def decode_proof(data: bytes) -> Proof:
    """Raises `msgspec.DecodeError` where it isn't one."""
    return msgspec.json.decode(data, type=Proof)
