"""The process that builds artifacts, or that verifies them: `python -m vgen.artifacts.worker TASK FOLDER`.

It writes `result-0.json` into the folder; of several processes that have a model in parts, each writes its own.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from .task import Case, Phase, Result, Task, Variant

LENGTHS = (9, 14)
"""Tokens of the prompts: the second one must be served by what the first one built."""
SEED = 10


class UnfitError(Exception):
    """The task can't be done: one paragraph."""


def main() -> None:
    task = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Task)
    # What libraries print is nothing for the terminal; where this dies, its end is shown.
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ["VGEN_ARTIFACTS"] = "off" if task.phase is Phase.BUILD else "require"
    if task.store:
        os.environ["VGEN_STORE"] = task.store
    try:
        result = _run(task)
    except UnfitError as error:
        result = Result(error=str(error))
    Path(sys.argv[2], f"result-{os.environ.get('RANK', '0')}.json").write_bytes(msgspec.json.encode(result))
    if task.processes > 1:
        _leave()


def _run(task: Task) -> Result:
    import torch

    config, generated_class = _class(task)
    if task.processes > 1 and ":" in task.device:
        raise UnfitError(
            f"--tp {task.processes} puts one process on each GPU, so --device {task.device} can't be for all of them: leave the "
            f"number out (--device {task.device.partition(':')[0]})."
        )
    if task.device.startswith("cuda") and not torch.cuda.is_available():
        raise UnfitError(f"There is no GPU here that PyTorch sees, so nothing can be compiled for {task.device}.")
    upstream_class = _upstream(generated_class)
    dtype = getattr(torch, task.dtype)
    if task.phase is Phase.WEIGHTS:
        _require_plan(upstream_class, config, task.processes)
        _made(upstream_class, config, dtype, "cpu").save_pretrained(task.checkpoint)
        return Result()
    is_split = task.processes > 1
    upstream = _part(upstream_class, task, dtype) if is_split else _made(upstream_class, config, dtype, task.device)
    plans = [plan for variant in _variants(task, upstream) for plan in _plans(task, upstream, variant)]
    expected = None
    if task.phase is Phase.VERIFY:
        expected = [_outputs(upstream, plan) for plan in plans]
    if is_split:
        generated = _generated_part(generated_class, task, dtype)
    else:
        weights = upstream.state_dict()
        generated = _generated(generated_class, config, dtype, task.device)
        generated.load_state_dict(weights)
        del weights
    del upstream
    cases = []
    for index, plan in enumerate(plans):
        cases.append(_case(task, generated, plan, None if expected is None else expected[index], dtype))
    return Result(cases=tuple(cases), label=_label(generated_class, task))


class _Plan:
    """One kind of call, with inputs of two lengths."""

    def __init__(self, variant: Variant, batch: int, inputs: list[dict[str, Any]]) -> None:
        self.variant = variant
        self.name = f"{variant.value}, batch of {batch}"
        self.inputs = inputs


def _class(task: Task) -> tuple[Any, Any]:
    from transformers import CONFIG_MAPPING, AutoConfig

    from ..runtime.errors import VgenRuntimeError
    from ..runtime.loader import _generated_class, _upstream_class

    where = task.config or task.model
    try:
        if Path(where).exists() or task.config is not None:
            config = AutoConfig.from_pretrained(where)
        elif task.model in CONFIG_MAPPING:
            config = CONFIG_MAPPING[task.model]()
        else:
            raise UnfitError(
                f"{task.model} is neither a folder nor a model type of the installed Transformers. Name the folder of a "
                f"checkpoint or of its config.json; `vgen list` shows the model types."
            )
    except (OSError, ValueError) as error:
        raise UnfitError(f"The config of {where} can't be read: {' '.join(str(error).split())}") from error
    try:
        return config, _generated_class(_upstream_class(config, where), task.generated)
    except VgenRuntimeError as error:
        raise UnfitError(str(error)) from error


def _upstream(generated: Any) -> Any:
    from ..verify.pair import upstream_of

    return upstream_of(generated)


def _made(cls: Any, config: Any, dtype: Any, device: str) -> Any:
    """A model with random weights, as `from_pretrained` would make it."""
    import torch

    torch.manual_seed(SEED)
    try:
        return cls._from_config(copy.deepcopy(config), dtype=dtype).to(device).eval()
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        raise UnfitError(f"{cls.__name__} can't be made from its config: {' '.join(str(error).split())}") from error


def _require_plan(cls: Any, config: Any, processes: int) -> None:
    """Raise where a model can't be split among so many processes."""
    plan = getattr(config, "base_model_tp_plan", None) or getattr(config.get_text_config(), "base_model_tp_plan", None)
    if not plan:
        raise UnfitError(
            f"{cls.__name__} has no tensor-parallel plan in Transformers, so it can't be split with --tp."
        )
    heads = getattr(config.get_text_config(), "num_key_value_heads", None)
    if isinstance(heads, int) and heads % processes:
        raise UnfitError(
            f"{cls.__name__} has {heads} heads of keys and values, which {processes} processes can't share: --tp has to "
            f"divide them."
        )


def _part(cls: Any, task: Task, dtype: Any) -> Any:
    """This process's part of a model, as a user gets it."""
    from ..runtime.errors import EncoderNotFoundError

    try:
        return cls.from_pretrained(task.checkpoint, tp_plan="auto", dtype=dtype).eval()
    except EncoderNotFoundError:
        raise
    except (RuntimeError, ValueError, TypeError, ImportError, NotImplementedError) as error:
        # Whatever upstream says of a plan that doesn't fit the model, or of what it lacks for it.
        raise UnfitError(
            f"{cls.__name__} can't be split among {task.processes} processes: {' '.join(str(error).split())}"
        ) from error


def _generated_part(cls: Any, task: Task, dtype: Any) -> Any:
    from .. import runtime
    from ..runtime.errors import EncoderNotFoundError

    try:
        with runtime.options(compile_mm_encoder=True):
            return _part(cls, task, dtype)
    except EncoderNotFoundError:
        return _part(cls, task, dtype)


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _label(cls: Any, task: Task) -> str:
    split = f", split among {task.processes}" if task.processes > 1 else ""
    return f"{cls.__name__} in {task.dtype} on {task.device}{split}"


def _generated(cls: Any, config: Any, dtype: Any, device: str) -> Any:
    from .. import runtime

    with runtime.options(compile_mm_encoder=True):
        return _made(cls, config, dtype, device)


def _variants(task: Task, model: Any) -> tuple[Variant, ...]:
    can = (Variant.STATIC, Variant.DYNAMIC) if model.can_generate() else (Variant.FORWARD,)
    wanted = task.variants or can
    if not model.can_generate() and (no := [each for each in wanted if each is not Variant.FORWARD]):
        raise UnfitError(f"{type(model).__name__} doesn't generate, so it has no variant {', '.join(no)}.")
    return tuple(dict.fromkeys(wanted))


def _plans(task: Task, model: Any, variant: Variant) -> Iterator[_Plan]:
    from ..verify.inputs import CannotMakeInputsError, Request, make_inputs

    for batch in task.batches:
        padding = "left" if batch > 1 else None
        try:
            inputs = [
                make_inputs(model, Request(batch=batch, length=length, padding=padding, seed=length))  # type: ignore[arg-type]  # "left" is one of its literals
                for length in LENGTHS
            ]
        except CannotMakeInputsError as error:
            raise UnfitError(str(error)) from error
        yield _Plan(variant, batch, inputs)


def _case(task: Task, model: Any, plan: _Plan, expected: list[dict[str, Any]] | None, dtype: Any) -> Case:
    from .. import runtime
    from ..runtime.building import building
    from ..runtime.errors import ArtifactError
    from ..verify.measure import Mismatch, difference

    runtime.reset_counters()
    begun = time.monotonic()
    folder = Path(task.store) if task.store else None
    if task.phase is Phase.BUILD and folder is None:
        from ..runtime.store import default_store

        folder = default_store()
    problem, worst = None, None
    try:
        with building(folder) if task.phase is Phase.BUILD and folder is not None else nullcontext():
            seconds = 0.0
            for index, _ in enumerate(plan.inputs):
                found = _output(model, plan, index)
                seconds = seconds or time.monotonic() - begun
                if expected is not None:
                    apart = difference(*_asked_alike(found, expected[index]), dtype=dtype, fused=True)
                    if isinstance(apart, Mismatch):
                        problem = problem or f"it isn't what eager gives: {apart.message}"
                    else:
                        worst = max(worst or 0.0, apart.relative)
    except ArtifactError as error:
        problem = str(error)
    if task.phase is Phase.BUILD:
        seconds = time.monotonic() - begun
    counts = runtime.counters()
    for tag, each in counts.items():
        if each.compiles:
            problem = problem or f"{tag} was compiled and not loaded"
        if each.fallbacks:
            problem = problem or f"{tag} runs uncompiled: {next(iter(each.fallbacks))}"
    return Case(
        name=plan.name,
        seconds=round(seconds, 2),
        regions={tag: each.loaded for tag, each in counts.items() if each.loaded},
        problem=problem,
        difference=worst,
    )


def _outputs(model: Any, plan: _Plan) -> list[dict[str, Any]]:
    return [_output(model, plan, index) for index, _ in enumerate(plan.inputs)]


def _output(model: Any, plan: _Plan, index: int) -> dict[str, Any]:
    import torch

    from ..verify.calls import generated
    from ..verify.measure import frozen

    inputs = copy.deepcopy(plan.inputs[index])
    if plan.variant is Variant.FORWARD:
        modes: tuple[Callable[[], Any], ...] = (torch.no_grad, torch.inference_mode)
        found: dict[str, Any] = {}
        for mode in modes:
            with mode():
                found |= {f"{mode.__name__} {name}": each for name, each in frozen(model(**inputs)).items()}
        return found
    arguments: dict[str, Any] = {"cache_implementation": "static"} if plan.variant is Variant.STATIC else {}
    return generated(model, inputs, arguments)


def _asked_alike(found: dict[str, Any], expected: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What can be compared: after a tie that rounding broke in another way, the next step continues another text."""
    import torch

    if "sequences" not in expected:
        return found, expected
    ours, theirs = found["sequences"], expected["sequences"]
    steps = sum(name.startswith("logits.") for name in expected)
    prompt = theirs.shape[1] - steps
    alike = 0
    while alike < steps and torch.equal(ours[:, : prompt + alike], theirs[:, : prompt + alike]):
        alike += 1
    names = [f"logits.{step}" for step in range(alike)]
    return {name: found[name] for name in names}, {name: expected[name] for name in names}


if __name__ == "__main__":
    main()
