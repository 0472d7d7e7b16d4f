"""Times generated models against every other way to compile them, on one GPU, with random weights at real sizes.

    python benchmarks/gpu.py [--models qwen2.5-vl-3b,…] [--contenders eager,…] [--tasks encoder,prefill,decode-1,…] [--out DIR]

Each contender is a process of its own, one for the encoder and one for the text. They prepare side by side (`--parallel`; first calls are slower then), and are measured in
turns, one call at a time with nothing else running, in `--rounds` rounds. A contender that prepares for longer than `--budget`
seconds in all is stopped, and the table says so. What is found is written to `raw.json` in the output folder as it comes, and at
the end to `table.md`; `python benchmarks/report.py DIR` makes the table again, and plots.

A dry run on any machine: `python benchmarks/gpu.py --device cpu --tiny`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contender import CONTENDERS, SAVES
from models import MODELS
from report import table

TASKS = ("encoder", "prefill", "decode-1", "decode-8", "decode-32", "stream")
HERE = Path(__file__).parent


class Process:
    """One contender's process. `ask` returns None once it has failed or been stopped; `failure` says why."""

    def __init__(self, name: str, model: str, arguments: argparse.Namespace, work: Path) -> None:
        self.name = name
        self.failure: str | None = None
        given = ("device", "backend", "tokens", "repeats", "blocks", "out")
        options = [part for each in given for part in (f"--{each}", str(getattr(arguments, each)))]
        command = [sys.executable, str(HERE / "contender.py"), name, model, "--work", str(work), *options]
        self._log = (Path(arguments.out) / "log.txt").open("a", encoding="utf-8")
        self._command = [*command, *(["--tiny"] if arguments.tiny else [])]
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    def start(self) -> None:
        # A session of its own, so that Inductor's workers end with it.
        self._process = subprocess.Popen(
            [*self._command, "--begun", str(time.time())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def ask(self, do: str, task: str, seconds: float, budget: float | None = None) -> Any:
        if self.failure is not None:
            return None
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "task": task, "budget": budget}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=max(seconds, 0.1))
        except queue.Empty:
            self.stop(f"stopped after {seconds:.0f} s in {do} {task}")
            return None
        except BrokenPipeError:
            line = None
        if line is None:
            self.stop(f"ended in {do} {task}")
            return None
        answer = json.loads(line)
        if "error" in answer:
            print(f"{self.name}, {do} {task}: {answer['error']}", file=sys.stderr)
        return answer

    def stop(self, failure: str) -> None:
        if self.failure is None:
            self.failure = failure
        if self._process is None:
            return
        # At first a word to the process alone, so that it notes in the log what it spent its time on.
        for send, target in ((os.kill, signal.SIGTERM), (os.killpg, signal.SIGKILL)):
            with contextlib.suppress(ProcessLookupError):
                send(self._process.pid, target)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)


@dataclass(kw_only=True)
class Job:
    """One process's work: the tasks of one model that a contender makes a difference to, in the encoder or around the text."""

    process: Process
    model: str
    work: Path
    tasks: list[str]
    results: dict[str, Any]


class Benchmark:
    """All jobs: prepared side by side, then measured in turns."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out = Path(arguments.out)
        self.begun = time.monotonic()
        # Where results go is of no interest to who reads them.
        given = {name: value for name, value in vars(arguments).items() if name != "out"}
        self.raw: dict[str, Any] = {"machine": machine(arguments), "arguments": given, "models": {}}

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as work:
            jobs = self._jobs(Path(work))
            try:
                self._together(jobs)
                self.say("prepared")
                for turn in range(self.arguments.rounds):
                    for model, task in self._tasks(jobs):
                        for job in jobs:
                            if job.model == model and task in job.tasks and self.left > 0:
                                self._measure(job, task)
                    self.say(f"round {turn + 1}")
                    self.save()
                self._finish(jobs)
            finally:
                for job in jobs:
                    job.process.stop("")
                self.save()

    @property
    def left(self) -> float:
        return self.begun + self.arguments.deadline - time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:.0f} s: {text}", file=sys.stderr, flush=True)

    def save(self) -> None:
        path = self.out / "raw.json"
        path.with_suffix(".new").write_text(json.dumps(self.raw, indent=1), encoding="utf-8")
        path.with_suffix(".new").rename(path)

    def _jobs(self, work: Path) -> list[Job]:
        jobs = []
        for model in self.arguments.models:
            for is_encoder in (True, False):
                tasks = [
                    each for each in self.arguments.tasks if _has(model, each) and _is_encoder(each) is is_encoder
                ]
                for name in self.arguments.contenders:
                    own = [task for task in tasks if task.split("-")[0] in CONTENDERS[name]]
                    if own:
                        results = self.raw["models"].setdefault(model, {}).setdefault(name, {})
                        process = Process(name, model, self.arguments, work)
                        jobs.append(Job(process=process, model=model, work=work, tasks=own, results=results))
        return jobs

    def _tasks(self, jobs: list[Job]) -> list[tuple[str, str]]:
        return list(dict.fromkeys((job.model, task) for job in jobs for task in job.tasks))

    def _together(self, jobs: list[Job]) -> None:
        slots = threading.Semaphore(self.arguments.parallel)
        threads = [threading.Thread(target=self._prepare, args=(job, slots)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.save()

    def _prepare(self, job: Job, slots: threading.Semaphore) -> None:
        with slots:
            until = min(time.monotonic() + self.arguments.budget, self.begun + self.arguments.prepare)
            if job.process.name == "vgen-artifacts":
                self._save_artifacts(job, until)
            job.process.start()
            for task in job.tasks:
                begun = time.monotonic()
                found = job.results.setdefault(task, {})
                answer = job.process.ask("prepare", task, until - begun, self.arguments.budget / 2)
                if answer is None or "error" in answer:
                    found["failure"] = job.process.failure if answer is None else answer["error"]
                else:
                    found |= {"prepare_s": time.monotonic() - begun, **answer.pop("found"), **answer}
                self.say(f"{job.model}, {job.process.name}, {task}: {found.get('failure', 'prepared')}")

    def _save_artifacts(self, job: Job, until: float) -> None:
        process = Process(SAVES, job.model, self.arguments, job.work)
        process.start()
        for task in job.tasks:
            begun = time.monotonic()
            answer = process.ask("prepare", task, until - begun, self.arguments.budget)
            self.say(f"{job.model}, {SAVES}, {task}: {(answer or {}).get('error', process.failure or 'saved')}")
        process.stop("")

    def _measure(self, job: Job, task: str) -> None:
        found = job.results[task]
        if "failure" in found:
            return
        answer = job.process.ask("measure", task, self.left)
        if answer is None or "error" in answer:
            found["failure"] = job.process.failure if answer is None else answer["error"]
            return
        for row, times in answer["found"].items():
            found.setdefault("ms", {}).setdefault(row, []).extend(times)
        found |= {key: answer[key] for key in ("memory_gib", "counts")}

    def _finish(self, jobs: list[Job]) -> None:
        for job in jobs:
            for task in job.tasks:
                if self.left < 0 or "failure" in job.results[task]:
                    continue
                if task in ("encoder", "prefill"):
                    answer = job.process.ask("compare", task, self.left)
                    job.results[task]["difference"] = (answer or {}).get("found")
                if f"{job.process.name}:{task}" in self.arguments.profile:
                    answer = job.process.ask("profile", task, self.left)
                    job.results[task]["profile"] = (answer or {}).get("found")
                    self.say(f"{job.model}, {job.process.name}, {task}: profiled")


def _is_encoder(task: str) -> bool:
    return task in ("encoder", "stream")


def _has(model: str, task: str) -> bool:
    told = MODELS[model]
    if task == "stream":
        return told.encoder == "model.visual"
    return told.encoder is not None if task == "encoder" else told.decodes


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
    }


def main() -> int:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=names, default=list(MODELS), help="separated by commas")
    parser.add_argument(
        "--contenders",
        type=names,
        default=list(CONTENDERS)[:-1],
        help="separated by commas; vgen-block needs --blocks",
    )
    parser.add_argument("--blocks", default="", help="package of what `vgen build --granularity block --out` wrote")
    parser.add_argument("--tasks", type=names, default=list(TASKS[:-1]), help="separated by commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a dry run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7, help="calls in a round")
    parser.add_argument("--tokens", type=int, default=32, help="that are generated")
    parser.add_argument("--parallel", type=int, default=1, help="contenders that prepare at a time")
    parser.add_argument("--budget", type=float, default=900, help="seconds that a contender may prepare in all")
    parser.add_argument("--deadline", type=float, default=1e5, help="seconds for everything")
    parser.add_argument("--prepare", type=float, default=1e5, help="seconds after which nobody prepares any more")
    parser.add_argument("--profile", type=names, default=[], help="contender:task, separated by commas")
    parser.add_argument("--out", default="benchmark-gpu", help="folder of results")
    arguments = parser.parse_args()
    unknown = [each for each in arguments.contenders if each not in CONTENDERS]
    unknown += [each for each in arguments.models if each not in MODELS]
    unknown += [each for each in arguments.tasks if each not in TASKS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(arguments)
    benchmark.run()
    text = table(benchmark.raw)
    (benchmark.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
