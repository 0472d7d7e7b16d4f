"""What the runs of one pair of models say: case by case, then region by region."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from . import stock
from .calls import call
from .cases import Instance
from .measure import Mismatch, difference, finite_share, is_equal
from .pair import Pair
from .results import Case as CaseResult
from .results import Difference, Finding, Kind, Region, Verdict
from .runs import Run, Setup, twin

UNCAPTURED = "it can't be compiled"
"""How the runtime begins the reason where a variant couldn't be captured (`runtime/region.py`)."""


class Stock:
    """Upstream's copies under stock torch.compile, one for each instance, made where they are needed."""

    def __init__(self, pristine: Any, pair: Pair) -> None:
        self._pristine = pristine
        decoders = tuple(name for name in pair.regions if not pair.generated.get_submodule(name).region.on_request)
        # Decoders alone first: upstream's encoders break into dozens of graphs, and seldom have a part in a difference.
        self._choices = tuple(each for each in dict.fromkeys((decoders, pair.regions)) if each)
        self._made: dict[tuple[Instance, tuple[str, ...]], Any] = {}

    def equals(self, run: Run) -> bool | None:
        """Whether upstream's own code gives the same when it is compiled, None where it can't be."""
        equal: bool | None = None
        for regions in self._choices:
            found = self._result(run, regions)
            if found is not None:
                assert run.found is not None
                equal = is_equal(found, run.found)
                if equal:
                    return True
        return equal

    def _result(self, run: Run, regions: tuple[str, ...]) -> dict[str, Any] | None:
        key = (run.case.instance, regions)
        if key not in self._made:
            self._made[key] = stock.compiled_copy(twin(self._pristine, run.case.instance), regions)
        try:
            with stock.patient():
                return call(self._made[key], run.case, run.inputs)
        except Exception:
            logging.getLogger(__name__).debug("upstream under torch.compile", exc_info=True)
            return None

    def again(self, run: Run) -> dict[str, Any] | None:
        """Upstream in eager once more, from a fresh copy."""
        try:
            return call(twin(self._pristine, run.case.instance), run.case, run.inputs)
        except Exception:
            return None


def judge(run: Run, stocks: Stock, setup: Setup, findings: list[Finding]) -> CaseResult | None:
    """Compare a case's results, and say what is wrong where they differ."""
    if run.found is None:
        return None
    name = run.case.name
    verdict, gap, reason = _compared(run, stocks, setup)
    if isinstance(gap, Mismatch):
        findings.append(Finding(kind=Kind.WRONG, message=gap.message, case=name, region=", ".join(_ran(run)) or None))
        gap = None
    return CaseResult(
        name=name,
        verdict=verdict,
        difference=gap,
        reason=reason,
        regions=tuple(_ran(run)),
        fallbacks=_fallbacks(run),
        seconds=run.seconds,
        finite=finite_share(run.expected) == 1.0,
    )


def _compared(run: Run, stocks: Stock, setup: Setup) -> tuple[Verdict, Difference | Mismatch | None, str | None]:
    assert run.found is not None
    if is_equal(run.found, run.expected):
        return Verdict.EXACT, None, None
    dtype = torch.bfloat16 if run.case.autocast else None
    gap = difference(run.found, run.expected, dtype=dtype, fused=not setup.is_exact)
    if not setup.is_exact and isinstance(gap, Difference):
        return Verdict.CLOSE, gap, f"{setup.backend} may fuse and reorder"
    again = stocks.again(run)
    if again is not None and not is_equal(again, run.expected):
        return Verdict.UNSTABLE, None, "upstream itself differs from run to run"
    same = stocks.equals(run)
    if same:
        if isinstance(gap, Difference):
            return Verdict.AS_COMPILED, gap, stock.REASON
        return (
            Verdict.WRONG,
            Mismatch(message=f"{gap.message}; upstream's own code does the same under torch.compile"),
            None,
        )
    if isinstance(gap, Mismatch):
        return Verdict.WRONG, gap, None
    words = f"{gap.where} differs by {gap.absolute:.2g} ({gap.relative:.2g} of its largest value)"
    why = "can't be compiled to compare" if same is None else "gives something else under torch.compile too"
    return Verdict.WRONG, Mismatch(message=f"{words}, and upstream's own code {why}"), None


def _ran(run: Run) -> list[str]:
    return sorted(
        tag for tag, each in run.counted.items() if each.calls > (run.before[tag].calls if tag in run.before else 0)
    )


def _fallbacks(run: Run) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for tag, each in run.counted.items():
        earlier = run.before[tag].fallbacks if tag in run.before else {}
        new = {reason: count - earlier.get(reason, 0) for reason, count in each.fallbacks.items()}
        if new := {reason: count for reason, count in new.items() if count}:
            found[tag] = new
    return found


def judge_regions(
    pair: Pair, counted: Mapping[str, Any], runs: list[Run], cases: list[CaseResult | None], findings: list[Finding]
) -> tuple[Region, ...]:
    regions = []
    for tag, (name, role) in sorted(pair.tags.items()):
        total = counted.get(tag)
        if total is None:
            findings.append(Finding(kind=Kind.NOT_RUN, message=f"{name} isn't reached by any case", region=tag))
            continue
        ran = [case for case in cases if case is not None and tag in case.regions]
        largest = max(
            (case for case in ran if case.difference is not None),
            key=lambda case: case.difference.relative if case.difference else 0.0,
            default=None,
        )
        breaks = sum(1 for reason in total.fallbacks if reason.startswith(UNCAPTURED))
        regions.append(
            Region(
                tag=tag,
                name=name,
                role=role,
                cases=len(ran),
                exact=sum(1 for case in ran if case.verdict is Verdict.EXACT),
                calls=total.calls,
                compiles=total.compiles,
                graphs=total.graphs,
                variants=total.variants,
                breaks=breaks,
                difference=largest.difference if largest else None,
                reason=largest.reason if largest else None,
                fallbacks=dict(total.fallbacks),
                seconds=round(sum(case.seconds for case in ran), 2),
            )
        )
        if total.compiles > total.variants - breaks:
            message = f"it compiled {total.compiles} times for {total.variants - breaks} variants: {_when(tag, runs)}"
            more = [run for run in runs if _grown(run, tag, "compiles") > _grown(run, tag, "variants")]
            once = len(more) == 1 and more[0].case.branches and total.compiles == total.variants - breaks + 1
            findings.append(Finding(kind=Kind.BRANCH if once else Kind.RECOMPILE, message=message, region=tag))
        findings += _needless(tag, runs)
        findings += [
            Finding(kind=Kind.FALLBACK, message=f"{count} of {total.calls} calls: {reason[:300]}", region=tag)
            for reason, count in total.fallbacks.items()
        ]
    return tuple(regions)


def _when(tag: str, runs: list[Run]) -> str:
    """The cases in which a region compiled more often than it met variants."""
    found = []
    for run in runs:
        compiles, variants = (_grown(run, tag, what) for what in ("compiles", "variants"))
        if compiles > variants:
            found.append(run.case.name)
    return "; ".join(found) or "each variant that couldn't be captured compiled in part"


def _needless(tag: str, runs: list[Run]) -> Iterator[Finding]:
    """Variants that a case met which only has other sizes than one before it, and whose modules held states of the same kinds."""
    by_name = {run.case.name: run for run in runs}
    for run in runs:
        earlier = run.before.get(tag)
        if run.case.like is None or not _differ_in_sizes(by_name[run.case.like].inputs, run.inputs):
            continue
        if earlier is not None and earlier.variants:
            more = _grown(run, tag, "variants") - _grown(run, tag, "held") - run.case.branches
            if run.case.like in _first_runs(tag, runs) and more > 0:
                message = f"{more} further variant(s) for other sizes than in “{run.case.like}”"
                yield Finding(kind=Kind.VARIANTS, message=message, case=run.case.name, region=tag)


def _differ_in_sizes(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two calls have the same arguments, which differ in their sizes alone. A size of 1 is a kind of its own, and so are
    samples of several images, where an image is a row."""
    return _kinds(one) == _kinds(other)


def _kinds(inputs: Mapping[str, Any]) -> dict[str, Any]:
    tensors = {name: value.shape for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.ndim}
    rows = next((shape[0] for shape in tensors.values()), 0)
    found = {name: ([size == 1 for size in shape], shape[0] == rows) for name, shape in tensors.items()}
    return {name: found.get(name, type(value)) for name, value in inputs.items()}


def _first_runs(tag: str, runs: list[Run]) -> set[str]:
    return {run.case.name for run in runs if tag in _ran(run)}


def _grown(run: Run, tag: str, what: str) -> int:
    before = getattr(run.before[tag], what) if tag in run.before else 0
    after = getattr(run.counted[tag], what) if tag in run.counted else 0
    assert isinstance(before, int)
    assert isinstance(after, int)
    return after - before
