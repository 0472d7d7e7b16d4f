"""What `vgen compile` and `vgen artifacts` do. Torch is imported only in processes of their own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..codegen.errors import VgenError
from ..runtime import store
from ..runtime.errors import ArtifactError
from .task import Case, Phase, Result, Task, Variant

TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
"""Starts the processes that have a model in parts, as people start theirs."""
VERSIONS = ("torch", "transformers", "triton")
"""What an artifact is of no use without, by the names that its fields and PyPI have for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a compile made: artifacts that are new or were there already, what it took, and what a fresh process found."""

    label: str
    folder: Path
    entries: tuple[Entry, ...]
    built: tuple[Case, ...]
    verified: tuple[Case, ...]

    @property
    def is_fine(self) -> bool:
        return not any(case.problem for case in (*self.built, *self.verified))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of a store. `problem`: why it can't be loaded; `header` is empty where that can't be read."""

    path: Path
    size: int
    header: Mapping[str, Any]
    problem: str | None = None

    @property
    def tag(self) -> str:
        return str(self.header.get("tag") or self.path.name.rpartition("-")[0])

    @property
    def is_stale(self) -> bool:
        """Whether it was made with other versions than the installed ones."""
        fields = self.header.get("fields", {})
        return any(fields.get(name) not in (None, _version(name)) for name in VERSIONS)


def task(
    model: str,
    *,
    config: str | None,
    dtype: str,
    device: str,
    variants: tuple[str, ...],
    batches: tuple[int, ...],
    generated: str | None,
    folder: Path | None,
    processes: int,
) -> Task:
    """What the command line asks for; without a folder it is the user's store.

    Raises:
        VgenError: `no-torch`.
    """
    if importlib.util.find_spec("torch") is None:
        raise VgenError("no-torch", "Compiling needs torch.", hint="`pip install 'vgen[torch]'` gets it.")
    return Task(
        phase=Phase.BUILD,
        model=model,
        config=config,
        dtype=dtype,
        device=device,
        variants=tuple(Variant(each) for each in variants),
        batches=tuple(dict.fromkeys(batches)),
        store=str(folder.resolve()) if folder else "",
        generated=generated,
        processes=processes,
    )


def compile_model(asked: Task, step: Callable[[str], None]) -> Compiled:
    """Build the artifacts of a model, and verify them in a fresh process.

    Raises:
        VgenError: `bad-input`, `worker-died`.
    """
    folder = Path(asked.store) if asked.store else store.default_store().resolve()
    with _weights(msgspec.structs.replace(asked, store=str(folder)), step) as task:
        step("building")
        built = _run(task, Phase.BUILD)
        step("verifying")
        verified = _run(task, Phase.VERIFY)
    # Of these regions, whichever process wrote them.
    tags = {tag for case in built.cases for tag in case.regions}
    return Compiled(
        label=built.label,
        folder=folder,
        entries=tuple(each for each in entries(folder) if each.tag in tags),
        built=built.cases,
        verified=verified.cases,
    )


def why(asked: Task) -> tuple[Case, ...]:
    """What keeps artifacts from serving a model: for each kind of call the first region that has none, and why.

    Raises:
        VgenError: `bad-input`, `worker-died`.
    """
    with _weights(asked, lambda words: None) as task:
        return _run(task, Phase.WHY).cases


@contextlib.contextmanager
def _weights(asked: Task, step: Callable[[str], None]) -> Iterator[Task]:
    """The task, with a checkpoint for as long as this lasts, where the model is to be split among processes."""
    if asked.processes == 1:
        yield asked
        return
    with tempfile.TemporaryDirectory(prefix="vgen-weights-") as name:
        step("writing random weights")
        task = msgspec.structs.replace(asked, checkpoint=name)
        _run(task, Phase.WEIGHTS)
        yield task


def entries(folder: Path) -> Iterator[Entry]:
    """The artifacts of a store, those that can't be loaded included."""
    for path in store.paths(folder):
        header: Mapping[str, Any] = {}
        problem = None
        with contextlib.suppress(ArtifactError, OSError):
            header = store.read(path, trusted=False).header
        try:
            store.read(path)
        except (ArtifactError, OSError) as error:
            problem = str(error)
        with contextlib.suppress(OSError):
            yield Entry(path=path, size=path.stat().st_size, header=header, problem=problem)


def prune(folder: Path, *, is_dry: bool) -> tuple[tuple[Path, str], ...]:
    """Remove what no process can use: broken artifacts, those of other versions, and what killed writers left.

    Returns:
        The files and why each goes.
    """
    found = [
        (each.path, each.problem or "it was made with other versions than the installed ones")
        for each in entries(folder)
        if not each.header or each.is_stale
    ]
    found += [(path, "its writer was killed") for path in store.partials(folder)]
    if not is_dry:
        for path, _ in found:
            path.unlink(missing_ok=True)
    return tuple(found)


def _run(asked: Task, phase: Phase) -> Result:
    task = msgspec.structs.replace(asked, phase=phase)
    count = 1 if phase is Phase.WEIGHTS else task.processes
    with tempfile.TemporaryDirectory(prefix="vgen-compile-") as name:
        question = Path(name, "task.json")
        question.write_bytes(msgspec.json.encode(task))
        launcher = [*TORCHRUN, f"--nproc-per-node={count}"] if count > 1 else []
        command = [sys.executable, *launcher, "-m", f"{__package__}.worker", str(question), name]
        # A model that is split lies on whatever accelerator PyTorch sees.
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if count > 1 and task.device == "cpu" else {}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | hidden)
        try:
            answers = [Path(name, f"result-{rank}.json").read_bytes() for rank in range(count)]
            results = [msgspec.json.decode(each, type=Result) for each in answers]
        except (OSError, msgspec.DecodeError):
            last = " ".join(done.stderr.split())[-600:]
            raise VgenError(
                "worker-died", f"The process that was {task.phase} artifacts ended with {done.returncode}: {last}"
            ) from None
    for result in results:
        if result.error is not None:
            raise VgenError("bad-input", result.error)
    return _merged(results)


def _merged(results: list[Result]) -> Result:
    """What all processes of a split model found: they make the same calls, and each is served by artifacts of its own."""
    first = results[0]
    if len(results) == 1:
        return first
    cases = []
    for each in zip(*(result.cases for result in results), strict=True):
        problems = [f"process {rank}: {case.problem}" for rank, case in enumerate(each) if case.problem]
        apart = [case.difference for case in each if case.difference is not None]
        cases.append(
            msgspec.structs.replace(
                each[0],
                seconds=max(case.seconds for case in each),
                problem=problems[0] if problems else None,
                difference=max(apart, default=None),
            )
        )
    return msgspec.structs.replace(first, cases=tuple(cases))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
