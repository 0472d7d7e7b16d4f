"""How generated models do on a CPU, against upstream eager in the same run: that nothing that is done for a GPU costs here.

    python benchmarks/cpu.py [--models tiny,mid] [--rounds N]

One process, two models: tiny ones, where a call is all overhead (Qwen2.5-VL with its vision encoder), and one of middle size,
where it is arithmetic (Llama, 4 layers of width 512). Calls of both contenders alternate. Ratios above 1 are faster than eager.

A ratio is never an error, since a busy machine changes it. These are (exit status 1): a result that differs from eager's, a
region that ran uncompiled, and one that compiled again for what it had a graph for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from contender import Contender, Steps
from models import MODELS, Model

from vgen.runtime import counters, reset_counters

MID: Mapping[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS: Mapping[str, tuple[Model, tuple[str, ...]]] = {
    "tiny": (MODELS["qwen2.5-vl-3b"], ("encoder", "prefill", "decode-1")),
    "mid": (replace(MODELS["llama-3.2-1b"], tiny=MID), ("prefill", "decode-1")),
}
SHAPE = "8x448²"
"""Of the encoder's inputs, the one that is timed."""
TOLERANCE = 1e-3
"""In fp32, as a share of the largest: what other sums and other kernels may make."""


def contenders(model: Model, work: str) -> dict[str, Contender]:
    given = {"device": "cpu", "backend": "inductor", "tiny": True, "tokens": 24, "work": work, "out": work}
    arguments = argparse.Namespace(**given, model=model.package, repeats=1, blocks="")
    return {name: Contender(name, model, arguments) for name in ("eager", "vgen")}


def rows(both: dict[str, Contender], tasks: tuple[str, ...], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each call or step, by row and contender; the first calls as rows of their own."""
    found: dict[str, dict[str, list[float]]] = {}
    for task in tasks:
        for turn in range(rounds + 2):
            for name, each in both.items():
                times = measure(each, task)
                if turn == 0:
                    found.setdefault(f"{task}, first call", {})[name] = [sum(times)]
                elif turn > 1:
                    found.setdefault(task, {}).setdefault(name, []).extend(times)
    return found


def measure(contender: Contender, task: str) -> list[float]:
    if task == "prefill":
        return [contender.timed(contender.prefill) for _ in range(3)]
    if task == "encoder":
        return [contender.timed(lambda: encoded(contender)) for _ in range(3)]
    steps = Steps()
    contender.generate(1, steps, contender.arguments.tokens)
    return [1e3 * (b - a) for a, b in zip(steps.times, steps.times[1:], strict=False)]


def encoded(contender: Contender) -> Any:
    return contender.encoder(**contender.shapes[SHAPE])


def findings(both: dict[str, Contender], tasks: tuple[str, ...]) -> list[str]:
    """What is wrong with what was timed, whatever the times are."""
    found = []
    for tag, each in counters().items():
        found += [f"{tag} ran uncompiled {times} times: {reason}" for reason, times in each.fallbacks.items()]
        if each.compiles > each.variants:
            found.append(f"{tag} compiled {each.compiles} times for {each.variants} kinds of calls")
    for task, run in {"encoder": encoded, "prefill": Contender.prefill}.items():
        if task not in tasks:
            continue
        outputs = (run(each) for each in both.values())
        eager, vgen = (each.logits if task == "prefill" else each.last_hidden_state for each in outputs)
        difference = ((eager - vgen).abs().max() / eager.abs().max()).item()
        # Written so that one that isn't a number is a finding too.
        if not difference < TOLERANCE:
            found.append(f"{task}: results differ by {difference:.1e} of the largest")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(KINDS), help="separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begun, wrong = time.perf_counter(), []
    print(f"torch {torch.__version__}, one thread\n\n| | eager, ms | vgen, ms | ratio |\n| --- | ---: | ---: | ---: |")
    for kind in arguments.models.split(","):
        model, tasks = KINDS[kind]
        reset_counters()
        with TemporaryDirectory() as work, torch.inference_mode():
            both = contenders(model, work)
            for row, times in rows(both, tasks, arguments.rounds).items():
                eager, vgen = (statistics.median(times[name]) for name in ("eager", "vgen"))
                print(f"| {kind}, {row} | {eager:.3g} | {vgen:.3g} | {eager / vgen:.2f} |", flush=True)
            wrong += [f"{kind}: {each}" for each in findings(both, tasks)]
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    for each in wrong:
        print(each, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
