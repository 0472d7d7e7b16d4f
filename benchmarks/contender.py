"""One contender in a process of its own: makes a model, and does what the lines on its standard input say.

Each line is a JSON object, `{"do": "prepare" | "measure" | "compare" | "profile", "task": …}`, answered by one line of JSON. A task
is "encoder", "prefill", "decode-1" (the number is the batch) or "stream".
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from models import MODELS, Inputs, Model, packed
from profiling import profiled
from transformers.generation.streamers import BaseStreamer

CONTENDERS: dict[str, frozenset[str]] = {
    "eager": frozenset({"encoder", "prefill", "decode", "stream"}),
    "torch.compile": frozenset({"encoder", "prefill", "stream"}),
    "model.compile": frozenset({"prefill", "decode"}),
    "compile_regions": frozenset({"encoder", "prefill", "decode", "stream"}),
    "generate-static": frozenset({"decode"}),
    "vgen": frozenset({"encoder", "prefill", "decode", "stream"}),
    "vgen-graphs": frozenset({"encoder", "prefill", "decode", "stream"}),
    "vgen-artifacts": frozenset({"encoder", "prefill", "decode", "stream"}),
    "vgen-block": frozenset({"encoder", "prefill", "decode", "stream"}),
}
"""The kinds of task of each contender: the others make no difference to it."""
SAVES = "vgen-saves"
"""What saves the artifacts that `vgen-artifacts` loads, in a process of its own before it."""
_GRAPHED = ("vgen-graphs", "vgen-artifacts", SAVES)

NO_TOKEN = 10**6
STREAM = 50
"""Image sizes in the stream."""
PROFILED = 10
"""Calls, or decode steps, under the profiler."""


class Steps(BaseStreamer):
    """Notes when each token arrived at the host, as at a user's who reads along."""

    def __init__(self, at: Callable[[int], None] | None = None) -> None:
        self.times: list[float] = []
        self._at = at
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        self.times.append(time.perf_counter())
        if self._at is not None:
            self._at(len(self.times))

    def end(self) -> None:
        pass


class Contender:
    """A model, and how its contender runs it."""

    def __init__(self, name: str, model: Model, arguments: argparse.Namespace) -> None:
        self.name = name
        self.arguments = arguments
        self.is_cuda = arguments.device == "cuda"
        self.dtype = torch.bfloat16 if self.is_cuda else torch.float32
        self._model = model
        self._config = model.config(arguments.tiny)
        self._prepared: dict[str, dict[str, float]] = {}
        # What all contenders of this model can see.
        self.outputs = Path(arguments.work) / arguments.model
        self.outputs.mkdir(exist_ok=True)

    @functools.cached_property
    def model(self) -> Any:
        made = self._made()
        if self._model.decodes:
            # One that is looked for, as always, and never found.
            made.generation_config.eos_token_id = NO_TOKEN
        if self.name == "model.compile":
            made.compile(backend=self.arguments.backend)
        return made

    @functools.cached_property
    def prefilled(self) -> Any:
        """What is called for a prefill, and what generates."""
        if self.name == "torch.compile":
            return torch.compile(self.model, backend=self.arguments.backend)
        return self._by_region(self.model)

    @functools.cached_property
    def encoder(self) -> Any:
        if self.name == "torch.compile":
            return torch.compile(self._bare_encoder, backend=self.arguments.backend)
        return self._by_region(self._bare_encoder)

    @functools.cached_property
    def _bare_encoder(self) -> Any:
        """Of a model that isn't kept: an encoder's memory is its own."""
        encoder = self._model.encoder_of(self._made())
        if self.is_cuda:
            torch.cuda.empty_cache()
        return encoder

    def _by_region(self, module: Any) -> Any:
        if self.name != "compile_regions":
            return module
        from accelerate.utils import compile_regions

        return compile_regions(module, backend=self.arguments.backend)

    def _made(self) -> Any:
        torch.manual_seed(0)
        is_generated = self.name.startswith("vgen")
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.device(self.arguments.device))
            if is_generated:
                from vgen.runtime import options

                given = {"compile_mm_encoder": self._model.encoder is not None, "backend": self.arguments.backend}
                stack.enter_context(options(**given, cuda_graphs=self.name in _GRAPHED))
            package = self.arguments.blocks if self.name == "vgen-block" else "vgen.generated"
            entry = self._model.entry_class(package if is_generated else None)
            return entry._from_config(self._config, dtype=self.dtype).eval()

    def inputs(self, made: Inputs) -> Inputs:
        placed = {name: value.to(self.arguments.device) for name, value in made.items()}
        return {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in placed.items()}

    @functools.cached_property
    def shapes(self) -> dict[str, Inputs]:
        return {
            name: self.inputs(make(self._config, self.arguments.tiny)) for name, make in self._model.shapes.items()
        }

    @functools.cache  # noqa: B019 (lives as long as the process)
    def prompt(self, batch: int) -> Inputs:
        length = 16 if self.arguments.tiny else 512
        ids = torch.randint(3, 200, (batch, length), generator=torch.Generator().manual_seed(2))
        return self.inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def generate(self, batch: int, steps: Steps, tokens: int) -> torch.Tensor:
        is_static = self.name.startswith(("vgen", "generate"))
        return self.prefilled.generate(
            **self.prompt(batch),
            max_new_tokens=tokens,
            do_sample=False,
            streamer=steps,
            **({"cache_implementation": "static"} if is_static else {}),
        )

    def prefill(self) -> Any:
        return self.prefilled(**self.prompt(1), use_cache=True, logits_to_keep=1)

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def timed(self, run: Callable[[], object]) -> float:
        """Milliseconds of one call, by the host's clock."""
        self.synchronize()
        begun = time.perf_counter()
        run()
        self.synchronize()
        return 1e3 * (time.perf_counter() - begun)

    def calls(self, task: str) -> dict[str, Callable[[], Any]]:
        """The calls that are timed for a task, by the name of their row."""
        if task == "encoder":
            return {name: functools.partial(self.encoder, **inputs) for name, inputs in self.shapes.items()}
        assert task == "prefill", task
        return {task: self.prefill}

    def prepare(self, task: str, budget: float | None) -> dict[str, Any]:
        """First calls, with what they took. Rows whose turn comes after the budget are left out."""
        begun = time.perf_counter()
        assert (self.model if task.startswith(("prefill", "decode")) else self.encoder) is not None
        self.synchronize()
        found: dict[str, Any] = {"construct_s": time.perf_counter() - begun}
        if task == "stream":
            return found
        if task.startswith("decode"):
            steps = Steps()
            batch = int(task.split("-")[1])
            tokens = self.arguments.tokens
            found["first_ms"] = {task: self.timed(lambda: self.generate(batch, steps, tokens))}
            found["output_s"] = time.time() - self.arguments.begun
            found["first_steps_ms"] = [1e3 * (b - a) for a, b in zip(steps.times, steps.times[1:], strict=False)][:6]
            self.generate(batch, Steps(), tokens)
        else:
            found["first_ms"] = self._prepared[task] = {}
            for name, run in self.calls(task).items():
                if budget is None or time.perf_counter() - begun < budget:
                    found["first_ms"][name] = self.timed(run)
                    found.setdefault("output_s", time.time() - self.arguments.begun)
            for name in found["first_ms"]:
                for _ in range(3):
                    self.calls(task)[name]()
        found["compile_times_s"] = compile_times()
        found["graphs"] = graphs()
        if task in ("encoder", "prefill"):
            self._save(task)
        return found

    def measure(self, task: str) -> dict[str, list[float]]:
        """Milliseconds of each call, or of each decode step."""
        if task == "stream":
            return self._stream()
        if task.startswith("decode"):
            steps = Steps()
            self.generate(int(task.split("-")[1]), steps, self.arguments.tokens)
            # The first two wait for the prefill, or for nothing.
            return {task: [1e3 * (b - a) for a, b in zip(steps.times[2:], steps.times[3:], strict=False)]}
        repeats = self.arguments.repeats
        calls = self.calls(task)
        return {name: [self.timed(calls[name]) for _ in range(repeats)] for name in self._prepared[task]}

    def _stream(self) -> dict[str, list[float]]:
        """One call for each of `STREAM` image sizes: how long it took, and how many graphs were compiled in all."""
        before, times = graphs(), []
        for index in range(STREAM):
            inputs = self.inputs(packed((1, 224 + 28 * index, 224 + 28 * (index * 7 % 31)))(self._config, False))
            times.append(self.timed(functools.partial(self.encoder, **inputs)))
        return {"stream": times, "stream, graphs": [graphs() - before]}

    def _save(self, task: str) -> None:
        """The outputs for `compare`, and from eager also those in fp32 with the same weights."""
        name, inputs = ("prefill", {}) if task == "prefill" else next(iter(self.shapes.items()))
        self._write(f"{self.name}-{task}", self.calls(task)[name]())
        if self.name != "eager":
            return
        module = copy.deepcopy(self.model if task == "prefill" else self._bare_encoder).float()
        if task == "prefill":
            inputs = {**self.prompt(1), "use_cache": True, "logits_to_keep": 1}
        wide = {key: value.float() if _is_floating(value) else value for key, value in inputs.items()}
        self._write(f"reference-{task}", module(**wide))
        del module
        if self.is_cuda:
            torch.cuda.empty_cache()

    def _write(self, name: str, output: Any) -> None:
        tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
        folder = self.outputs
        torch.save(tensor.float().cpu(), folder / f"{name}.new")
        (folder / f"{name}.new").rename(folder / f"{name}.pt")

    def compare(self, task: str) -> dict[str, float] | None:
        """How far the outputs are from eager's in fp32, as a share of the largest of those."""
        folder = self.outputs
        paths = (folder / f"{self.name}-{task}.pt", folder / f"reference-{task}.pt")
        if not all(path.exists() for path in paths):
            return None
        ours, reference = map(torch.load, paths)
        return {task: ((ours - reference).abs().max() / reference.abs().max()).item()}

    def profile(self, task: str) -> dict[str, Any]:
        """Kernels and host functions of ten decode steps or calls, as text in the output folder; milliseconds of one."""
        if task.startswith("decode"):
            return {task: self._profile(task, functools.partial(self._steps, int(task.split("-")[1])))}
        return {
            name: self._profile(f"{task} {name}", functools.partial(self._repeated, run))
            for name, run in self.calls(task).items()
        }

    def _steps(self, batch: int, begin: Callable[[], None], end: Callable[[], None]) -> float:
        """Generates, with ten of the steps between `begin` and `end`. Returns the milliseconds of one."""
        first = 4
        last = first + PROFILED

        def at(step: int) -> None:
            if step == first:
                begin()
            elif step == last:
                end()

        steps = Steps(at)
        self.generate(batch, steps, last + 2)
        return 1e3 * (steps.times[last - 1] - steps.times[first]) / (last - 1 - first)

    def _repeated(self, run: Callable[[], Any], begin: Callable[[], None], end: Callable[[], None]) -> float:
        begin()
        found = statistics.median(self.timed(run) for _ in range(PROFILED))
        end()
        return found

    def _profile(self, title: str, run: Callable[[Callable[[], None], Callable[[], None]], float]) -> dict[str, float]:
        title = f"{self.arguments.model}, {self.name}, {title}"
        return profiled(
            title, run, into=Path(self.arguments.out) / "profiles.txt", calls=PROFILED, is_cuda=self.is_cuda
        )

    def memory(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_cuda else None

    def counts(self) -> dict[str, Any] | None:
        if not self.name.startswith("vgen"):
            return None
        from vgen.runtime import counters

        return {
            tag: {
                "compiles": each.compiles,
                "recordings": each.recordings,
                "replays": each.replays,
                "fallbacks": dict(each.fallbacks),
            }
            for tag, each in counters().items()
        }


@contextlib.contextmanager
def _artifacts(contender: Contender) -> Iterator[None]:
    """Where artifacts are saved, or loaded from; nothing is compiled where they are loaded."""
    store = contender.outputs / "store"
    if contender.name == SAVES:
        from vgen.runtime.building import building

        with building(store):
            yield
        return
    is_reader = contender.name == "vgen-artifacts"
    os.environ |= {"VGEN_ARTIFACTS": "require", "VGEN_STORE": str(store)} if is_reader else {"VGEN_ARTIFACTS": "off"}
    yield


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def compile_times() -> dict[str, str]:
    """Seconds of the compiler's parts. Parts lie in one another."""
    headers, values = torch._dynamo.utils.compile_times(repr="csv", aggregate=True)
    return dict(zip(headers, values, strict=True))


def graphs() -> int:
    """Graphs that Dynamo handed to a backend in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@contextlib.contextmanager
def _answers() -> Iterator[Callable[[Any], None]]:
    """Standard output for answers alone: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    yield answer


def _told_to_stop(*_: object) -> None:
    print(json.dumps(compile_times()), file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=[*CONTENDERS, SAVES])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--device", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--blocks", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--begun", type=float, required=True, help="when the process was started, by time.time()")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    contender = Contender(arguments.contender, MODELS[arguments.model], arguments)
    # What a contender that was stopped had spent its time on.
    signal.signal(signal.SIGTERM, _told_to_stop)
    with _answers() as answer, torch.inference_mode(), _artifacts(contender):
        for line in sys.stdin:
            told = json.loads(line)
            try:
                more = (told["budget"],) if told["do"] == "prepare" else ()
                found = getattr(contender, told["do"])(told["task"], *more)
            except Exception as error:
                # One task that can't be done leaves the others.
                answer({"error": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"})
                traceback.print_exc()
                continue
            answer({"found": found, "memory_gib": contender.memory(), "counts": contender.counts()})


if __name__ == "__main__":
    main()
