"""How long a fresh process takes to the first output: eager, vgen from artifacts, and those who compile.

    python benchmarks/start.py [--layers 4 16 64] [--hidden 256] [--device cpu] [--dtype float32] [--rounds N] [--json]

Each way is a process of its own, from its start to the logits of a prompt of 32 tokens: imports, making a random Llama, and
whatever is compiled or loaded.

- eager: upstream's model;
- artifacts: the generated model, with artifacts that an earlier process saved, and an empty cache of Inductor's;
- artifacts again: the same with the cache that the last one left;
- compile, cold and warm: `torch.compile(model)` with an empty cache of its own, and with the one that the last left;
- regions, cold and warm: the same with accelerate's `compile_regions`, which compiles one layer for all.

Seconds are wall time and, in brackets, processor time, which other work on the machine changes less. The least of the rounds
counts. The last column is the processor time of the call alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WAYS = ("eager", "artifacts", "artifacts again", "compile, cold", "compile, warm", "regions, cold", "regions, warm")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Seconds of one process."""

    wall: float
    processor: float
    call: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.layers[0], arguments.hidden, arguments.device, arguments.dtype)
        return 0
    found: dict[int, dict[str, Start]] = {}
    for layers in arguments.layers:
        found[layers] = measure(layers, arguments)
        if not arguments.json:
            show(layers, found[layers])
    if arguments.json:
        print(json.dumps({n: {way: asdict(each) for way, each in ways.items()} for n, ways in found.items()}))
    return 0


def measure(layers: int, arguments: argparse.Namespace) -> dict[str, Start]:
    with tempfile.TemporaryDirectory(prefix="vgen-start-") as name:
        folder = Path(name)
        caches = {"VGEN_STORE": str(folder / "store"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "build")}
        if any(way.startswith("artifacts") for way in arguments.ways):
            start("build", layers, arguments, caches)
        found: dict[str, Start] = {}
        for round_ in range(arguments.rounds):
            for way in arguments.ways:
                kind = way.partition(", ")[0].removesuffix(" again")
                environment = {**caches, "TORCHINDUCTOR_CACHE_DIR": str(folder / f"{kind}-{round_}")}
                took = start(kind, layers, arguments, environment)
                if way not in found or took.processor < found[way].processor:
                    found[way] = took
        return found


def start(way: str, layers: int, arguments: argparse.Namespace, environment: Mapping[str, str]) -> Start:
    command = [sys.executable, __file__, "--child", way, "--layers", str(layers), "--hidden", str(arguments.hidden)]
    command += ["--device", arguments.device, "--dtype", arguments.dtype]
    fixed = {"VGEN_ARTIFACTS": "require", "HF_HUB_OFFLINE": "1"}
    begun = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **fixed, **environment}, capture_output=True, text=True, check=False
    )
    wall = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{way} with {layers} layers failed:\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Start(wall=wall, processor=told["processor"], call=told["call"])


def child(way: str, layers: int, hidden: int, device: str, dtype: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    ids = torch.arange(32, device=device)[None]
    model: Any
    if way in ("artifacts", "build"):
        from vgen.generated.llama import LlamaForCausalLM as Generated

        model = Generated(config)
    else:
        model = LlamaForCausalLM(config)
    model = model.eval().to(device=device, dtype=getattr(torch, dtype))
    if way == "compile":
        model = torch.compile(model)
    elif way == "regions":
        from accelerate.utils import compile_regions

        model = compile_regions(model)
    begun = time.process_time()
    with torch.no_grad():
        if way == "build":
            from vgen.runtime.building import building

            with building(Path(os.environ["VGEN_STORE"])):
                output = model(ids, use_cache=False).logits
        else:
            output = model(ids, use_cache=False).logits
    float(output.sum())
    # With that of compilers, which are processes of their own.
    others = os.times().children_user + os.times().children_system
    spent = time.process_time() + others
    print(json.dumps({"call": spent - begun, "processor": spent}))


def show(layers: int, found: Mapping[str, Start]) -> None:
    print(f"{layers} layers")
    for way, each in found.items():
        print(f"  {way:<16} {each.wall:7.1f} s  ({each.processor:6.1f} s)  call {each.call:6.1f} s")


if __name__ == "__main__":
    raise SystemExit(main())
