"""Processes that build the same artifact at the same time, and one that only loads: it needs no compiler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import run_python

from vgen.runtime import store

BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from served import PROMPT, make
from vgen.runtime import counters
from vgen.runtime.building import building
upstream, model = make()
with torch.no_grad(), building(Path(sys.argv[1])):
    found = model(input_ids=PROMPT, use_cache=False).logits
    torch.testing.assert_close(found, upstream(input_ids=PROMPT, use_cache=False).logits)
count = counters()["llama.decoder"]
assert (count.loaded, count.compiles) == (1, 0), count
"""


LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from served import PROMPT, make
from vgen.runtime import counters
upstream, model = make()
with torch.no_grad():
    found = model(input_ids=PROMPT, use_cache=False).logits
    torch.testing.assert_close(found, upstream(input_ids=PROMPT, use_cache=False).logits)
count = counters()["llama.decoder"]
assert (count.loaded, count.compiles) == (1, 0), count
heavy = [f"torch._inductor.{name}" for name in ("compile_fx", "graph", "lowering", "scheduler", "select_algorithm")]
print([name for name in heavy if name in sys.modules])
"""


EXCHANGE = """
from transformers.models.llama import modeling_llama
whole = modeling_llama.apply_rotary_pos_emb
def exchanged(*args, **kwargs):
    query, key = whole(*args, **kwargs)
    return query * 1e4, key
modeling_llama.apply_rotary_pos_emb = exchanged
"""


CALL = """
import sys
from contextlib import nullcontext
from pathlib import Path
tests, is_exchanged, folder = sys.argv[1:]
sys.path[:0] = [tests, "."]
import torch
from served import PROMPT, EagerCore, make
from vgen.runtime import counters, region
from vgen.runtime.building import building
if is_exchanged == "True":
    import exchange
region.CompiledCore = EagerCore
upstream, model = make()
with torch.no_grad(), building(Path(folder)) if folder else nullcontext():
    found = model(input_ids=PROMPT, use_cache=False).logits
    torch.testing.assert_close(found, upstream(input_ids=PROMPT, use_cache=False).logits)
print(counters()["llama.decoder"].loaded)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), tests], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_eight_at_once_and_one_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    killed = start(folder)
    deadline = time.monotonic() + 300
    # It holds the lock of the artifact, and compiles.
    while not list(folder.glob(".*.lock")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not store.paths(folder)
    for process in [start(folder) for _ in range(8)]:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors[-2000:]
    (path,) = store.paths(folder)
    store.read(path)
    assert not list(store.partials(folder))


def test_what_loads_an_artifact_imports_no_compiler(request: pytest.FixtureRequest) -> None:
    environment = {
        "VGEN_STORE": str(request.getfixturevalue("store")),
        "VGEN_ARTIFACTS": "require",
        # As many as where it was built: code for the CPU is made for a number of threads.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    done = run_python(["-c", LOAD, str(Path(__file__).parent.parent)], **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[]"


def call(tmp_path: Path, store: Path, *, is_exchanged: bool, folder: str = "") -> tuple[int, str]:
    """How many calls are served in a process where a function is exchanged or isn't, and what it logs."""
    (tmp_path / "exchange.py").write_text(EXCHANGE)
    arguments = [str(Path(__file__).parent.parent), str(is_exchanged), folder]
    threads = str(torch.get_num_threads())
    done = run_python(["-c", CALL, *arguments], cwd=tmp_path, VGEN_STORE=str(store), OMP_NUM_THREADS=threads)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1]), done.stderr


def test_what_was_built_where_a_function_is_exchanged_serves_only_there(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    loaded, logged = call(tmp_path, request.getfixturevalue("store"), is_exchanged=True)
    assert loaded == 0
    assert "was compiled from other code: transformers.models.llama.modeling_llama" in logged
    folder = tmp_path / "store"
    assert call(tmp_path, folder, is_exchanged=True, folder=str(folder))[0] == 1
    assert call(tmp_path, folder, is_exchanged=True)[0] == 1
    loaded, logged = call(tmp_path, folder, is_exchanged=False)
    assert loaded == 0
    assert "was compiled from other code" in logged
