"""How long `vgen build --all` takes, against LibCST's bare parse of the same modeling files in the same run.

    python benchmarks/build.py [--transformers DIR] [--rounds N] [--check] [--json]

The yardstick is one process that does nothing but `libcst.parse_module`. What is measured is whole processes, start to end:

- cold: no cache, no packages;
- warm: nothing changed since;
- changed: one modeling file changed since;
- one: `vgen build qwen2_5_vl`, without a cache and with one.

Memory is what all processes of a cold build hold together at their peak. The machine's speed drifts: compare within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import vgen
from vgen.codegen.source import PACKAGE, Source, folder, installed

COLD_SHARE, WARM, CHANGED, ONE, MEMORY = 0.75, 2.0, 3.0, 1.5, 1500
"""Targets: cold as a share of the yardstick on two processors; seconds; MB."""

EDITED = "llama"
SINGLE = "qwen2_5_vl"
PROCESSORS = 2

YARDSTICK = """
import sys
from pathlib import Path
import libcst
for line in sys.stdin:
    libcst.parse_module(Path(line.rstrip()).read_text(encoding="utf-8"))
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process: seconds from start to end, of the processor in all its processes, and MB at the peak of their sum."""

    wall: float
    processor: float
    peak: float


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--transformers", type=Path, help="An unpacked Transformers, in place of the installed one."
    )
    arguments.add_argument("--rounds", type=int, default=1, help="How often all of it is measured; medians count.")
    arguments.add_argument("--check", action="store_true", help="Exit with 1 where a target is missed.")
    arguments.add_argument("--json", action="store_true", help="The same for machines.")
    chosen = arguments.parse_args()
    source = folder(chosen.transformers) if chosen.transformers else installed()
    limit_processors()
    with tempfile.TemporaryDirectory(prefix="vgen-bench-") as temporary:
        rounds = [measure(source, Path(temporary) / str(number)) for number in range(chosen.rounds)]
    medians = {name: median(each[name] for each in rounds) for name in rounds[0]}
    results = judge(medians)
    if chosen.json:
        data = {
            "transformers": source.version,
            "models": len(source.models()),
            "processors": available(),
            "rounds": [{name: asdict(run) for name, run in each.items()} for each in rounds],
            "targets": {name: {"value": value, "at_most": most} for name, value, most, _ in results},
        }
        print(json.dumps(data, indent=2))
    else:
        show(source, medians, results)
    return int(chosen.check and any(value > most for _, value, most, _ in results))


def limit_processors() -> None:
    """Two, as the target says: processes that are started from here have the same."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:PROCESSORS])


def available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(source: Source, work: Path) -> dict[str, Run]:
    """One round, on a copy of Transformers, so that a file can be changed."""
    root = work / "upstream"
    shutil.copytree(source.root / PACKAGE, root / PACKAGE, ignore=only_python)
    files = [root / PACKAGE / "models" / model / f"modeling_{model}.py" for model in source.models()]
    everything = ["build", "--all", "--transformers", str(root), "--out", str(work / "packages")]
    single = ["build", SINGLE, "--transformers", str(root), "--out", str(work / "single")]
    run_vgen(["--help"], work)  # compiles vgen itself
    runs = {"yardstick": run([sys.executable, "-c", YARDSTICK], work, "".join(f"{path}\n" for path in files))}
    runs["cold"] = run_vgen(everything, work)
    runs["warm"] = run_vgen(everything, work)
    edited = root / PACKAGE / "models" / EDITED / f"modeling_{EDITED}.py"
    edited.write_text(edited.read_text(encoding="utf-8") + "\n# Changed.\n", encoding="utf-8")
    runs["changed"] = run_vgen(everything, work)
    runs["one, no cache"] = run_vgen(single, work, VGEN_CACHE="off")
    runs["one, cached"] = run_vgen(single, work)
    return runs


def only_python(folder: str, names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.endswith(".py") and not (Path(folder) / name).is_dir()} | {
        "__pycache__"
    }


def run_vgen(arguments: list[str], work: Path, **environment: str) -> Run:
    return run([sys.executable, "-m", "vgen.cli", *arguments], work, XDG_CACHE_HOME=str(work / "cache"), **environment)


def run(command: list[str], work: Path, given: str = "", **environment: str) -> Run:
    """Run a command to its end, watching how much memory it and its children hold."""
    # As on a user's machine: modules are compiled once, not in every process.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    inherited.setdefault("PYTHONPYCACHEPREFIX", str(work / "bytecode"))
    before, began = os.times(), time.perf_counter()
    paths = [str(Path(vgen.__file__).resolve().parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    process = subprocess.Popen(
        command,
        cwd=work,
        env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, paths[1:])), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(given.encode())
    process.stdin.close()
    peak = 0.0
    while True:
        try:
            code = process.wait(timeout=0.02)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, sum(map(resident, family(process.pid))))
    wall, after = time.perf_counter() - began, os.times()
    if code != 0:
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(wall=wall, processor=spent, peak=peak)


def family(process: int) -> list[int]:
    """A process and all its descendants, where the system tells."""
    found, pending = [], [process]
    while pending:
        each = pending.pop()
        found.append(each)
        for thread in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                pending += map(int, thread.read_text().split())
            except OSError:
                continue
    return found


def resident(process: int) -> float:
    """MB of memory in use; 0 where it isn't known."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def median(runs: Iterable[Run]) -> Run:
    runs = tuple(runs)
    return Run(
        wall=statistics.median(run.wall for run in runs),
        processor=statistics.median(run.processor for run in runs),
        peak=max(run.peak for run in runs),
    )


def judge(runs: Mapping[str, Run]) -> list[tuple[str, float, float, str]]:
    """What was aimed at: name, value, the most it may be, unit."""
    return [
        ("cold, of the yardstick's time", runs["cold"].wall / runs["yardstick"].wall, COLD_SHARE, "×"),
        ("warm", runs["warm"].wall, WARM, "s"),
        ("one changed file", runs["changed"].wall, CHANGED, "s"),
        ("peak memory", runs["cold"].peak, MEMORY, "MB"),
        (f"{SINGLE} alone, no cache", runs["one, no cache"].wall, ONE, "s"),
    ]


def show(source: Source, runs: Mapping[str, Run], results: Iterable[tuple[str, float, float, str]]) -> None:
    print(f"Transformers {source.version}, {len(source.models())} modeling files, {available()} processors")
    print(f"\n{'':<16}{'wall s':>9}{'processor s':>13}{'peak MB':>9}")
    for name, each in runs.items():
        print(f"{name:<16}{each.wall:>9.2f}{each.processor:>13.2f}{each.peak:>9.0f}")
    print()
    for name, value, most, unit in results:
        verdict = "met" if value <= most else "MISSED"
        print(f"{name:<32}{value:>9.2f} {unit:<3} at most {most:g} {unit:<3} {verdict}")


if __name__ == "__main__":
    sys.exit(main())
