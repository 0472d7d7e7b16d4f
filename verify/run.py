"""Proves many packages in processes of their own; each result is kept at once, so a run that was killed goes on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec

from . import packages
from .cases import Sweep, digest
from .results import Finding, Kind, Proof, Settings, decode_proof, encode
from .worker import LEAVES, work

TIMEOUT = 600.0
"""Seconds that one package may take, on a machine that does other work too."""
START = 180.0
"""Seconds until a process has imported what it needs."""
OFF = "off"
PROVING = (
    "runtime",
    *(
        f"verify/{name}"
        for name in ("calls.py", "cases.py", "checks", "entries.py", "inputs", "judge.py", "making.py", "measure.py")
    ),
    *(f"verify/{name}" for name in ("pair.py", "proof.py", "runs.py", "snapshot.py", "stock.py", "tiny")),
)
"""What decides on results: where it is another, nothing is remembered."""

Step = Callable[[str, bool], None]
"""Told a package, and whether it is done or only begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be proved, and how."""

    folder: Path
    models: tuple[str, ...]
    backend: str
    device: str
    dtype: str
    sweep: Sweep
    jobs: int
    timeout: float = TIMEOUT
    fresh: bool = False
    """Prove again what is remembered."""

    def settings(self) -> Settings:
        return Settings(
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
            torch=importlib.metadata.version("torch"),
            transformers=importlib.metadata.version("transformers"),
            level=self.sweep.value,
            sweep=digest(self.sweep),
        )


def run(request: Request, step: Step = lambda model, done: None) -> Iterator[Proof]:
    """The proof of each package, as they become known: those that are remembered first."""
    memory = _Memory(request)
    rest = []
    for model in request.models:
        known = None if request.fresh else memory.load(model)
        if known is None:
            rest.append(model)
        else:
            step(model, True)
            yield known
    if rest:
        for proof in _prove(request, rest, step):
            memory.keep(proof)
            step(proof.model, True)
            yield proof


class _Memory:
    """Proofs by what they are of: the package and those it uses, vgen's own code, the settings."""

    def __init__(self, request: Request) -> None:
        root = Path(__file__).resolve().parent.parent
        code = "".join(packages.code_digest(root / name) for name in PROVING)
        key = msgspec.json.encode(request.settings()) + code.encode()
        name = hashlib.sha256(key).hexdigest()[:16]
        self._where = request.folder
        self._folder = None if os.environ.get("VGEN_CACHE") == OFF else cache_folder() / name

    def load(self, model: str) -> Proof | None:
        if self._folder is None:
            return None
        own = packages.digest_on_disk(self._where / model)
        try:
            proof = decode_proof((self._folder / f"{model}-{own}.json").read_bytes())
        except (OSError, msgspec.DecodeError):
            return None
        used = {name: packages.digest_on_disk(self._where / name) or "" for name in proof.uses}
        return proof if used == dict(proof.uses) else None

    def keep(self, proof: Proof) -> None:
        if self._folder is None:
            return
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{proof.model}-{proof.digest}.json"
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(encode(proof))
            Path(file.name).replace(path)


def cache_folder() -> Path:
    """Where proofs are remembered: not inside the folder of `codegen.cache`, which forgets what it doesn't know."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "vgen-verify"


@dataclass(slots=True, kw_only=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    log: Path
    model: str | None = None
    deadline: float = 0.0
    is_ready: bool = False


def _prove(request: Request, models: Sequence[str], step: Step) -> Iterator[Proof]:
    # A fork would copy the threads of a progress bar in the middle of what they do.
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(models))
    with tempfile.TemporaryDirectory(prefix="vgen-verify-") as logs:
        count = 0

        def start() -> _Worker:
            nonlocal count
            count += 1
            here, there = context.Pipe()
            log = Path(logs) / f"{count}.log"
            arguments = (there, request.folder, request.backend, request.device, request.dtype)
            process = context.Process(target=work, args=(*arguments, request.sweep.value, log), daemon=True)
            process.start()
            there.close()
            return _Worker(process=process, connection=here, log=log, deadline=time.monotonic() + START)

        workers = [start() for _ in range(min(request.jobs, len(models)))]
        try:
            while workers:
                wait([worker.connection for worker in workers], timeout=0.5)
                for worker in list(workers):
                    proof, is_over = _news(worker, request)
                    if proof is not None:
                        yield proof
                    if is_over:
                        workers.remove(worker)
                        _end(worker)
                        if waiting:
                            workers.append(start())
                    elif worker.is_ready and worker.model is None:
                        if not waiting:
                            with suppress(OSError):
                                worker.connection.send(None)
                            workers.remove(worker)
                            worker.process.join(10)
                            _end(worker)
                            continue
                        worker.model = waiting.pop()
                        worker.deadline = time.monotonic() + request.timeout
                        step(worker.model, False)
                        # Where it has gone, the next look at it says so.
                        with suppress(OSError):
                            worker.connection.send(worker.model)
        finally:
            for worker in workers:
                _end(worker)


def _news(worker: _Worker, request: Request) -> tuple[Proof | None, bool]:
    """What a process has to say, and whether it is over with it."""
    try:
        if worker.connection.poll():
            data = worker.connection.recv_bytes()
            if not worker.is_ready:
                worker.is_ready = True
                return None, False
            worker.model = None
            return decode_proof(data[1:]), data[:1] == LEAVES
    except (EOFError, OSError):
        worker.process.join(5)
        if worker.model is None:
            if not worker.is_ready:
                raise _did_not_start(worker) from None
            return None, True
        return _died(worker, request), True
    if time.monotonic() > worker.deadline and (worker.model is not None or not worker.is_ready):
        if worker.model is None:
            raise _did_not_start(worker)
        message = f"it took more than {request.timeout:.0f} seconds and was stopped"
        return _failed(worker.model, request, Kind.TIMEOUT, message), True
    return None, False


def _died(worker: _Worker, request: Request) -> Proof:
    assert worker.model is not None
    code = worker.process.exitcode
    last = _last_line(worker.log)
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        kind = Kind.MEMORY if -code == signal.SIGKILL else Kind.CRASH
        return _failed(worker.model, request, kind, f"its process was ended by {name}: {last}")
    return _failed(worker.model, request, Kind.CRASH, f"its process ended with status {code}: {last}")


def _did_not_start(worker: _Worker) -> Exception:
    from ..codegen.errors import VgenError

    return VgenError(
        "worker-died",
        f"A process that was to verify couldn't start: {_last_line(worker.log)}",
        hint="Running models needs torch: pip install 'vgen[torch]'.",
    )


def _failed(model: str, request: Request, kind: Kind, message: str) -> Proof:
    own = packages.digest_on_disk(request.folder / model) or ""
    return Proof(model=model, digest=own, findings=(Finding(kind=kind, message=message),))


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1][:300]
    return "it printed nothing"


def _end(worker: _Worker) -> None:
    worker.connection.close()
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()
