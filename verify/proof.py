"""Proves one generated package, in this process: its entry classes run the sweep beside upstream's."""

from __future__ import annotations

import copy
import gc
import importlib
import time
from dataclasses import replace
from typing import Any

import torch

from . import packages, snapshot
from .checks import Context, HookWatch, run_checks
from .entries import main_entries, main_entry
from .inputs import CannotMakeInputsError
from .judge import Stock, judge, judge_regions
from .making import make_tiny
from .measure import finite_share
from .pair import Pair, UnprovedError, make_pair, one_line, upstream_of
from .results import Entry, Finding, Kind, Proof
from .runs import Instances, Setup, execute, expect, kind_of, without_dropout
from .tiny import CannotShrinkError

_FINITE = 0.9
"""The share of numbers that have to be finite for a case to prove something. A mask of infinities may be among them."""


def prove(model: str, folder: packages.Folder, setup: Setup) -> Proof:
    """Everything that is to be known of one package. Never raises: what goes wrong is a finding."""
    own = packages.digest_on_disk(folder.path / model) or ""
    try:
        module = importlib.import_module(folder.module(model))
    except Exception as error:
        missing = "but it was not found in your environment" in str(error)
        kind = Kind.UNPROVED if missing or (isinstance(error, ImportError) and _is_foreign(error)) else Kind.ERROR
        return Proof(
            model=model, digest=own, findings=(Finding(kind=kind, message=f"it can't be imported: {one_line(error)}"),)
        )
    begun = time.monotonic()
    entries, used = _entries(model, module, folder, setup)
    uses = {name: packages.digest_on_disk(folder.path / name) or "" for name in sorted(used - {model})}
    return Proof(
        model=model, digest=own, uses=uses, entries=tuple(entries), seconds=round(time.monotonic() - begun, 2)
    )


def _is_foreign(error: ImportError) -> bool:
    """Whether a library that upstream wants is missing, and not something of the package."""
    return error.name is not None and not error.name.startswith(("vgen", "transformers"))


def _entries(model: str, module: Any, folder: packages.Folder, setup: Setup) -> tuple[list[Entry], set[str]]:
    """Entry classes until every region ran: one that has nothing new is proved as a part of another."""
    chosen = main_entries(model, module)
    first = main_entry(model, module)
    made: list[tuple[str, Any, Pair]] = []
    entries: list[Entry] = []
    used: set[str] = set()
    for model_type, cls in chosen.items():
        try:
            config = make_tiny(upstream_of(cls)).config
            pair = make_pair(cls, config, backend=setup.backend, device=setup.device, dtype=setup.torch_dtype)
            if not setup.is_exact:
                # A backend that fuses draws other random numbers.
                for each in (pair.upstream, pair.generated):
                    without_dropout(each)
        except (CannotShrinkError, CannotMakeInputsError, UnprovedError) as error:
            entries.append(_unproved(model_type, cls, Kind.UNPROVED, str(error)))
        except Exception as error:
            message = f"it can't be made where upstream's can: {one_line(error)}"
            entries.append(_unproved(model_type, cls, kind_of(error), message))
        else:
            made.append((model_type, cls, pair))
    # By region, the entry in which it ran, and the first that held it, where it may have run in a graph of another.
    covered: dict[tuple[str, str], int] = {}
    held: dict[tuple[str, str], int] = {}
    # The largest first.
    made.sort(key=lambda each: (-len(each[2].tags), each[1] is not first, each[0]))
    for model_type, cls, pair in made:
        used |= _packages_of(pair.generated, folder)
        own = {(tag, name) for tag, (name, _) in pair.tags.items()}
        if own and all(each in covered for each in own):
            _add_type(entries, covered[next(iter(own))], model_type)
            continue
        try:
            entries.append(_prove_entry(model_type, cls, pair, setup))
        except Exception as error:
            # Of a model that does what nobody thought of: its own finding, and the next one's turn.
            message = f"verifying it raises: {one_line(error)}"
            entries.append(_unproved(model_type, cls, kind_of(error), message))
        last = len(entries) - 1
        if entries[-1].cases:
            ran = {region.tag for region in entries[-1].regions}
            covered.update((each, last) for each in own if each[0] in ran)
            held.update((each, last) for each in own if each not in held)
        elif own and all(each in held for each in own) and _is_unproved(entries[-1]):
            entries.pop()
            _add_type(entries, held[next(iter(own))], model_type)
    return _without_reached(entries), used


def _is_unproved(entry: Entry) -> bool:
    return all(each.kind is Kind.UNPROVED for each in entry.findings)


def _add_type(entries: list[Entry], index: int, model_type: str) -> None:
    """Another model type that an entry stands for."""
    entries[index] = replace(entries[index], model_types=(*entries[index].model_types, model_type))


def _without_reached(entries: list[Entry]) -> list[Entry]:
    """Without the findings of regions that one entry doesn't reach where another does: inside of a region that is compiled, a
    region is a part of its graph."""
    ran = {region.tag for entry in entries for region in entry.regions}
    return [
        replace(
            entry,
            findings=tuple(each for each in entry.findings if each.kind is not Kind.NOT_RUN or each.region not in ran),
        )
        for entry in entries
    ]


def _packages_of(generated: Any, folder: packages.Folder) -> set[str]:
    prefix = f"{folder.dotted}." if folder.dotted else ""
    names = {type(part).__module__ for part in generated.modules()}
    found = {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}
    return {name for name in found if (folder.path / name).is_dir()}


def _unproved(model_type: str, cls: Any, kind: Kind, message: str) -> Entry:
    return Entry(name=cls.__name__, model_types=(model_type,), findings=(Finding(kind=kind, message=message),))


def _prove_entry(model_type: str, cls: Any, pair: Pair, setup: Setup) -> Entry:
    name = cls.__name__
    if not pair.regions:
        return _unproved(model_type, cls, Kind.UNPROVED, "its tiny model holds no region")
    begun = time.monotonic()
    pristine = copy.deepcopy(pair.upstream)
    skipped: dict[str, str] = {}
    models = Instances(pair)
    try:
        runs = expect(pair, models, skipped, setup)
    except UnprovedError as error:
        return replace(_unproved(model_type, cls, Kind.UNPROVED, str(error)), skipped=skipped)
    prefixes = _upstream_modules(pair.upstream)
    before = snapshot.take(prefixes)
    findings: list[Finding] = []
    pair.runtime.reset()
    hooks: tuple[HookWatch, HookWatch] | None = None
    for run in runs:
        # Before any is hooked: copies have the hooks of the original.
        models.generated(run.case.instance)
    for run in runs:
        run.before = pair.runtime.counters()
        if run.hooks is not None:
            hooks = HookWatch(pair.generated, pair.steady, pair.runtime.counters), run.hooks
        execute(run, models.generated(run.case.instance), findings, pair)
        if run.hooks is not None and hooks is not None:
            hooks[0].close()
    counted = pair.runtime.counters()
    # Not before all cases ran: it makes copies and loads checkpoints.
    checks = run_checks(Context(pair=pair, cls=cls, hooks=hooks))
    changed = snapshot.changed(before, snapshot.take(prefixes))
    if changed:
        findings.append(
            Finding(
                kind=Kind.CHECK, message=f"upstream's modules were changed: {', '.join(changed[:5])}", case="untouched"
            )
        )
    findings += checks.findings
    stocks = Stock(pristine, pair)
    cases = [judge(run, stocks, setup, findings) for run in runs]
    regions = judge_regions(pair, counted, runs, cases, findings)
    weak = [run.case.name for run in runs if finite_share(run.expected) < _FINITE]
    if weak:
        message = f"upstream's results aren't finite, and equal NaNs prove little: {'; '.join(weak)}"
        findings.append(Finding(kind=Kind.UNPROVED, message=message))
    return Entry(
        name=name,
        model_types=(model_type,),
        cases=tuple(each for each in cases if each is not None),
        regions=regions,
        checks=(*checks.passed, "untouched") if not changed else checks.passed,
        skipped={**skipped, **checks.skipped},
        findings=tuple(findings),
        seconds=round(time.monotonic() - begun, 2),
    )


def _upstream_modules(model: Any) -> set[str]:
    """The folders of Transformers that a model's classes come from."""
    found = {"transformers.modeling_utils", "transformers.masking_utils", "transformers.cache_utils"}
    for part in model.modules():
        name = type(part).__module__
        if name.startswith("transformers.models."):
            found.add(".".join(name.split(".")[:3]))
    return found


def forget() -> None:
    """Let go of what one package compiled, before the next."""
    torch._dynamo.reset()
    gc.collect()
