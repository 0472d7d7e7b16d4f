"""What `vgen verify` does. Torch is imported only in the processes that prove."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..codegen import output
from ..codegen.errors import VgenError
from . import packages, record, run
from .cases import Sweep
from .results import Proof

MOST_JOBS = 4
"""Processes where nobody says how many: each takes about a gigabyte."""


def request(
    out: Path | None,
    models: Iterable[str],
    *,
    everything: bool,
    backend: str,
    device: str,
    dtype: str,
    sweep: str,
    jobs: int | None,
    timeout: float,
    fresh: bool,
) -> run.Request:
    """What was asked for.

    Raises:
        VgenError: `no-torch`, `not-built`.
    """
    if importlib.util.find_spec("torch") is None:
        raise VgenError(
            "no-torch", "Verifying runs models, which needs torch.", hint="`pip install 'vgen[torch]'` gets it."
        )
    folder = (out or output.default_folder()).resolve()
    return run.Request(
        folder=folder,
        models=packages.select(folder, models, everything=everything),
        backend=backend,
        device=device,
        dtype=dtype,
        sweep=Sweep(sweep),
        jobs=jobs or min(MOST_JOBS, len(os.sched_getaffinity(0))),
        timeout=timeout,
        fresh=fresh,
    )


def weights(asked: run.Request) -> Mapping[str, int]:
    """What each package takes about: more with more code."""
    return {
        model: sum(path.stat().st_size for path in (asked.folder / model).glob("modeling_*.py"))
        for model in asked.models
    }


def prove(asked: run.Request, step: run.Step, folder: Path | None) -> tuple[Proof, ...]:
    """Prove everything, and note it in the record of `folder`, if one is given.

    Raises:
        VgenError: `worker-died`, `broken-record`.
    """
    if folder is not None:
        # Before minutes of work, not after.
        record.read(record.path_of(folder, asked.settings().transformers))
    proofs = tuple(run.run(asked, step))
    if folder is not None:
        record.update(folder, asked.settings(), proofs)
    return proofs


def show(asked: run.Request, proofs: Sequence[Proof], *, as_json: bool) -> None:
    """Print what was found."""
    from . import show as shown

    if as_json:
        print(shown.as_json(asked.settings(), proofs), end="")
    else:
        shown.print_proofs(asked.settings(), proofs)
