"""Proves one generated package, in this process: its entry classes run the sweep beside upstream's."""

from __future__ import annotations

import copy
import gc
import importlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from . import packages, snapshot, stock
from .calls import call
from .cases import BY_LAYER, Case, Instance, Sweep, Way, cases
from .checks import Context, HookWatch, run_checks
from .entries import main_entries, main_entry
from .inputs import CannotMakeInputsError, Request, abilities, make_inputs
from .making import make_tiny
from .measure import Mismatch, difference, finite_share, is_equal
from .pair import Pair, UnprovedError, make_pair, one_line, upstream_of
from .results import Case as CaseResult
from .results import Difference, Entry, Finding, Kind, Proof, Region, Verdict
from .tiny import CannotShrinkError

UNCAPTURED = "it can't be compiled"
"""How the runtime begins the reason where a variant couldn't be captured (`runtime/region.py`)."""

_FINITE = 0.9
"""The share of numbers that have to be finite for a case to prove something. A mask of infinities may be among them."""

_LAYER_DROP = {Instance.LAYER_DROP: 0.4, Instance.NO_LAYER_DROP: 1e-6}
"""How often a layer is left out: of the two of a tiny stack some are, in most, and all run."""

_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How to run: the backend, the device and the dtype."""

    backend: str = "eager"
    device: str = "cpu"
    dtype: str = "float32"
    sweep: Sweep = Sweep.WHOLE

    @property
    def torch_dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    @property
    def is_exact(self) -> bool:
        return self.backend == "eager"


@dataclass(slots=True, kw_only=True)
class _Run:
    """One case while it is at work."""

    case: Case
    inputs: dict[str, Any]
    expected: dict[str, Any]
    hooks: HookWatch | None = None
    """What was watched in upstream's model."""
    found: dict[str, Any] | None = None
    seconds: float = 0.0
    counted: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)


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
                    _without_dropout(each)
        except (CannotShrinkError, CannotMakeInputsError, UnprovedError) as error:
            entries.append(_unproved(model_type, cls, Kind.UNPROVED, str(error)))
        except Exception as error:
            message = f"it can't be made where upstream's can: {one_line(error)}"
            entries.append(_unproved(model_type, cls, _kind(error), message))
        else:
            made.append((model_type, cls, pair))
    covered: dict[tuple[str, str], int] = {}
    # The largest first.
    made.sort(key=lambda each: (-len(each[2].tags), each[1] is not first, each[0]))
    for model_type, cls, pair in made:
        used |= _packages_of(pair.generated, folder)
        own = {(tag, name) for tag, (name, _) in pair.tags.items()}
        if own and all(each in covered for each in own):
            holder = entries[covered[next(iter(own))]]
            entries[covered[next(iter(own))]] = replace(holder, model_types=(*holder.model_types, model_type))
            continue
        try:
            entries.append(_prove_entry(model_type, cls, pair, setup))
        except Exception as error:
            # Of a model that does what nobody thought of: its own finding, and the next one's turn.
            message = f"verifying it raises: {one_line(error)}"
            entries.append(_unproved(model_type, cls, _kind(error), message))
        if entries[-1].cases:
            covered.update(dict.fromkeys(own, len(entries) - 1))
    return entries, used


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
    models = _Instances(pair)
    try:
        runs = _expect(pair, models, skipped, setup)
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
        _run(run, models.generated(run.case.instance), findings, pair)
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
    stocks = _Stock(pristine, pair)
    cases = [_judge(run, stocks, setup, findings) for run in runs]
    regions = _regions(pair, counted, runs, cases, findings)
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


class _Instances:
    """The instances of both models, made when a case asks for them."""

    def __init__(self, pair: Pair) -> None:
        self._made = {(Instance.MAIN, True): pair.upstream, (Instance.MAIN, False): pair.generated}

    def upstream(self, instance: Instance) -> Any:
        return self._get(instance, True)

    def generated(self, instance: Instance) -> Any:
        return self._get(instance, False)

    def _get(self, instance: Instance, is_upstream: bool) -> Any:
        key = (instance, is_upstream)
        if key not in self._made:
            self._made[key] = _twin(self._made[Instance.MAIN, is_upstream], instance)
        return self._made[key]


def _twin(model: Any, instance: Instance) -> Any:
    """A copy with what an instance has set. It compiles for itself."""
    twin = copy.deepcopy(model)
    match instance:
        case Instance.EAGER_ATTENTION:
            twin.set_attn_implementation("eager")
        case Instance.CHECKPOINTING:
            # What a checkpoint computes again has other random numbers in a graph than in eager.
            _without_dropout(twin)
            twin.gradient_checkpointing_enable()
        case Instance.LAYER_DROP | Instance.NO_LAYER_DROP:
            rate = _LAYER_DROP[instance]
            _set_floats(twin, rate, lambda name, part: "layerdrop" in name or "layer_drop" in name)
    return twin


def _without_dropout(model: Any) -> None:
    _set_floats(model, 0.0, lambda name, part: "drop" in name or (name == "p" and "Drop" in type(part).__name__))


def _set_floats(model: Any, value: float, is_meant: Callable[[str, Any], bool]) -> None:
    """Set attributes of the modules, and of their configs, that are floats now."""
    for part in model.modules():
        for holder in (part, getattr(part, "config", None)):
            for name, now in list(vars(holder).items()) if holder is not None else ():
                if isinstance(now, float) and is_meant(name, part):
                    setattr(holder, name, value)


def _expect(pair: Pair, models: _Instances, skipped: dict[str, str], setup: Setup) -> list[_Run]:
    """The cases that apply, with what upstream gives for each.

    Raises:
        UnprovedError: Not one of them runs.
    """
    # What inputs it takes is asked of a copy, which runs for it: some models write buffers while they run.
    asked = replace(pair, upstream=copy.deepcopy(pair.upstream))
    able = set(abilities(asked.upstream))
    if pair.upstream.can_generate() and "text" in able | _text_like(able):
        able.add("generate")
    if getattr(pair.upstream, "supports_gradient_checkpointing", False):
        able.add("checkpointing")
    runs: list[_Run] = []
    done: set[str] = set()
    has_layers = len(pair.steady) < len(pair.regions)
    for case in (*cases(setup.sweep), *(BY_LAYER if has_layers else ())):
        if not case.needs <= able or (case.like is not None and case.like not in done):
            continue
        try:
            inputs = _on(_inputs(case, able, asked), pair.upstream)
        except Exception as error:
            reason = str(error) if isinstance(error, CannotMakeInputsError) else one_line(error)
            skipped[case.name] = f"no inputs: {reason[:200]}"
            continue
        model, hooks = models.upstream(case.instance), None
        if case.way is Way.TRAINING and case.instance is Instance.MAIN:
            hooks = HookWatch(model, pair.steady, None)
        try:
            expected = call(model, case, inputs)
        except Exception as error:
            skipped[case.name] = f"upstream: {one_line(error)}"
            continue
        finally:
            if hooks is not None:
                hooks.close()
        runs.append(_Run(case=case, inputs=inputs, expected=expected, hooks=hooks))
        done.add(case.name)
    if not runs:
        reason = next(iter(skipped.values()), "no case applies")
        raise UnprovedError(f"upstream doesn't run: {reason}")
    return runs


def _text_like(able: set[str]) -> set[str]:
    """Speech and image models that write text generate from what they hear or see."""
    return {"text"} if "decoder" in able else set()


def _inputs(case: Case, able: set[str], pair: Pair) -> dict[str, Any]:
    """The inputs of a case. Some models take embeddings, but not beside images: ids then.

    Raises:
        CannotMakeInputsError: There are none.
    """
    try:
        return make_inputs(pair.upstream, _request(case, able, pair))
    except CannotMakeInputsError:
        if not case.sizes.embeds or "embeds" not in able:
            raise
        return make_inputs(pair.upstream, _request(case, able - {"embeds"}, pair))


def _request(case: Case, able: set[str], pair: Pair) -> Request:
    sizes = case.sizes
    lengths: tuple[int, ...] = ()
    if sizes.audio_scale > 1:
        base = make_inputs(pair.upstream, Request(batch=1, images=0))
        name = next((each for each in ("input_features", "input_values") if each in base), None)
        if name is None:
            raise CannotMakeInputsError("the length of its audio isn't known")
        lengths = (sizes.audio_scale * max(base[name].shape[1:]),)
    return Request(
        batch=sizes.batch,
        length=sizes.length,
        padding=sizes.padding if "padding" in able else None,
        images=sizes.images,
        image_sizes=sizes.image_sizes,
        videos=sizes.videos,
        frames=sizes.frames,
        audios=sizes.audios,
        audio_lengths=lengths,
        embeds=sizes.embeds and "embeds" in able,
        labels=sizes.labels and "labels" in able and "text" in able and not (sizes.embeds and "embeds" in able),
    )


def _on(value: Any, model: Any) -> Any:
    """Inputs on the model's device, floating ones in its dtype."""
    parameter = next(model.parameters())
    if isinstance(value, torch.Tensor):
        return value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, dict):
        return {name: _on(each, model) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on(each, model) for each in value)
    return value


def _upstream_modules(model: Any) -> set[str]:
    """The folders of Transformers that a model's classes come from."""
    found = {"transformers.modeling_utils", "transformers.masking_utils", "transformers.cache_utils"}
    for part in model.modules():
        name = type(part).__module__
        if name.startswith("transformers.models."):
            found.add(".".join(name.split(".")[:3]))
    return found


def _run(run: _Run, generated: Any, findings: list[Finding], pair: Pair) -> None:
    begun = time.monotonic()
    try:
        run.found = call(generated, run.case, run.inputs)
    except Exception as error:
        message = f"it raises where upstream doesn't: {one_line(error)}"
        findings.append(Finding(kind=_kind(error), message=message, case=run.case.name))
    run.seconds = round(time.monotonic() - begun, 3)
    run.counted = pair.runtime.counters()


def _kind(error: BaseException) -> Kind:
    is_memory = isinstance(error, MemoryError) or any(words in str(error) for words in _MEMORY)
    return Kind.MEMORY if is_memory else Kind.ERROR


class _Stock:
    """Upstream's copies under stock torch.compile, one for each instance, made where they are needed."""

    def __init__(self, pristine: Any, pair: Pair) -> None:
        self._pristine = pristine
        decoders = tuple(name for name in pair.regions if not pair.generated.get_submodule(name).region.on_request)
        # Decoders alone first: upstream's encoders break into dozens of graphs, and seldom have a part in a difference.
        self._choices = tuple(each for each in dict.fromkeys((decoders, pair.regions)) if each)
        self._made: dict[tuple[Instance, tuple[str, ...]], Any] = {}

    def equals(self, run: _Run) -> bool | None:
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

    def _result(self, run: _Run, regions: tuple[str, ...]) -> dict[str, Any] | None:
        key = (run.case.instance, regions)
        if key not in self._made:
            self._made[key] = stock.compiled_copy(_twin(self._pristine, run.case.instance), regions)
        try:
            with stock.patient():
                return call(self._made[key], run.case, run.inputs)
        except Exception:
            logging.getLogger(__name__).debug("upstream under torch.compile", exc_info=True)
            return None

    def again(self, run: _Run) -> dict[str, Any] | None:
        """Upstream in eager once more, from a fresh copy."""
        try:
            return call(_twin(self._pristine, run.case.instance), run.case, run.inputs)
        except Exception:
            return None


def _judge(run: _Run, stocks: _Stock, setup: Setup, findings: list[Finding]) -> CaseResult | None:
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


def _compared(run: _Run, stocks: _Stock, setup: Setup) -> tuple[Verdict, Difference | Mismatch | None, str | None]:
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


def _ran(run: _Run) -> list[str]:
    return sorted(
        tag for tag, each in run.counted.items() if each.calls > (run.before[tag].calls if tag in run.before else 0)
    )


def _fallbacks(run: _Run) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for tag, each in run.counted.items():
        earlier = run.before[tag].fallbacks if tag in run.before else {}
        new = {reason: count - earlier.get(reason, 0) for reason, count in each.fallbacks.items()}
        if new := {reason: count for reason, count in new.items() if count}:
            found[tag] = new
    return found


def _regions(
    pair: Pair, counted: Mapping[str, Any], runs: list[_Run], cases: list[CaseResult | None], findings: list[Finding]
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


def _when(tag: str, runs: list[_Run]) -> str:
    """The cases in which a region compiled more often than it met variants."""
    found = []
    for run in runs:
        compiles, variants = (_grown(run, tag, what) for what in ("compiles", "variants"))
        if compiles > variants:
            found.append(run.case.name)
    return "; ".join(found) or "each variant that couldn't be captured compiled in part"


def _needless(tag: str, runs: list[_Run]) -> Iterator[Finding]:
    """Variants that a case met which only has other sizes than one before it."""
    by_name = {run.case.name: run for run in runs}
    for run in runs:
        earlier = run.before.get(tag)
        if run.case.like is None or not _differ_in_sizes(by_name[run.case.like].inputs, run.inputs):
            continue
        if earlier is not None and earlier.variants:
            more = _grown(run, tag, "variants") - run.case.branches
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


def _first_runs(tag: str, runs: list[_Run]) -> set[str]:
    return {run.case.name for run in runs if tag in _ran(run)}


def _grown(run: _Run, tag: str, what: str) -> int:
    before = getattr(run.before[tag], what) if tag in run.before else 0
    after = getattr(run.counted[tag], what) if tag in run.counted else 0
    assert isinstance(before, int)
    assert isinstance(after, int)
    return after - before


def forget() -> None:
    """Let go of what one package compiled, before the next."""
    torch._dynamo.reset()
    gc.collect()
