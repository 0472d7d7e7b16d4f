"""The cases of one pair of models: the inputs of each, what upstream gives for them, and what the generated model gives."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .calls import call
from .cases import BY_LAYER, Case, Instance, Sweep, Way, cases
from .checks import HookWatch
from .inputs import CannotMakeInputsError, Request, abilities, make_inputs
from .pair import Pair, UnprovedError, one_line
from .results import Finding, Kind

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
class Run:
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


class Instances:
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
            self._made[key] = twin(self._made[Instance.MAIN, is_upstream], instance)
        return self._made[key]


def twin(model: Any, instance: Instance) -> Any:
    """A copy with what an instance has set. It compiles for itself."""
    # A state that training left in a module is a result, which PyTorch refuses to copy.
    results = (each for part in model.modules() for each in vars(part).values() if isinstance(each, torch.Tensor))
    memo = {id(each): each.detach().clone() for each in results if each.grad_fn is not None}
    twin = copy.deepcopy(model, memo)
    match instance:
        case Instance.EAGER_ATTENTION:
            twin.set_attn_implementation("eager")
        case Instance.CHECKPOINTING:
            # What a checkpoint computes again has other random numbers in a graph than in eager.
            without_dropout(twin)
            twin.gradient_checkpointing_enable()
        case Instance.LAYER_DROP | Instance.NO_LAYER_DROP:
            rate = _LAYER_DROP[instance]
            _set_floats(twin, rate, lambda name, part: "layerdrop" in name or "layer_drop" in name)
    return twin


def without_dropout(model: Any) -> None:
    _set_floats(model, 0.0, lambda name, part: "drop" in name or (name == "p" and "Drop" in type(part).__name__))


def _set_floats(model: Any, value: float, is_meant: Callable[[str, Any], bool]) -> None:
    """Set attributes of the modules, and of their configs, that are floats now."""
    for part in model.modules():
        for holder in (part, getattr(part, "config", None)):
            for name, now in list(vars(holder).items()) if holder is not None else ():
                if isinstance(now, float) and is_meant(name, part):
                    setattr(holder, name, value)


def expect(pair: Pair, models: Instances, skipped: dict[str, str], setup: Setup) -> list[Run]:
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
    runs: list[Run] = []
    done: set[str] = set()
    has_layers = len(pair.steady) < len(pair.regions)
    applicable = [case for case in (*cases(setup.sweep), *(BY_LAYER if has_layers else ())) if case.needs <= able]
    for case in applicable:
        # Before any is called, as those of the generated model are: a call may change modules, and draw random numbers for it.
        models.upstream(case.instance)
    for case in applicable:
        if case.like is not None and case.like not in done:
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
        runs.append(Run(case=case, inputs=inputs, expected=expected, hooks=hooks))
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


def execute(run: Run, generated: Any, findings: list[Finding], pair: Pair) -> None:
    begun = time.monotonic()
    try:
        run.found = call(generated, run.case, run.inputs)
    except Exception as error:
        message = f"it raises where upstream doesn't: {one_line(error)}"
        findings.append(Finding(kind=kind_of(error), message=message, case=run.case.name))
    run.seconds = round(time.monotonic() - begun, 3)
    run.counted = pair.runtime.counters()


def kind_of(error: BaseException) -> Kind:
    is_memory = isinstance(error, MemoryError) or any(words in str(error) for words in _MEMORY)
    return Kind.MEMORY if is_memory else Kind.ERROR
