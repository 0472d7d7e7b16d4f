"""The process that proves: takes one package after the other, and hands back what it found as bytes."""

from __future__ import annotations

import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

RECYCLE = 3 << 30
"""Bytes of memory beyond which a process makes way for a new one: what hundreds of models leave behind adds up."""
STAYS, LEAVES = b"+", b"-"
"""What stands in front of a proof: whether the process makes way after it."""
LIMIT = 16 << 30
"""Bytes of address space that a process may have on the CPU: beyond, a model's allocation fails, and says so."""


def work(connection: Connection, folder: Path, backend: str, device: str, dtype: str, sweep: str, log: Path) -> None:
    """Prove the packages that come through `connection`, until None comes or the other end has gone.

    What is printed meanwhile goes to `log`, whose end is told where the process dies.
    """
    # Ctrl-C goes to every process of the terminal: the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _redirect(log)
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    import logging
    import warnings

    import torch

    torch.set_num_threads(1)
    if device == "cpu":
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, hard))
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from transformers.utils import logging as upstream_logging

    upstream_logging.disable_progress_bar()
    from .cases import Sweep
    from .packages import find_folder
    from .proof import forget, prove
    from .results import encode
    from .runs import Setup

    where = find_folder(folder)
    sys.path.insert(0, str(where.root))
    setup = Setup(backend=backend, device=device, dtype=dtype, sweep=Sweep(sweep))
    try:
        connection.send_bytes(b"")
        while True:
            model = connection.recv()
            if model is None:
                return
            log_start(model)
            proof = encode(prove(model, where, setup))
            forget()
            # Told with the proof, so that nobody sends the next model to a process that has gone.
            leaves = _memory() > RECYCLE
            connection.send_bytes((LEAVES if leaves else STAYS) + proof)
            if leaves:
                return
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # Whoever asked has gone.
        return


def log_start(model: str) -> None:
    """Only what the model at work printed is of interest."""
    os.ftruncate(1, 0)
    os.lseek(1, 0, os.SEEK_SET)
    print(f"{model}:", flush=True)


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    import faulthandler

    faulthandler.enable(2)


def _memory() -> int:
    """The process's resident bytes."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
