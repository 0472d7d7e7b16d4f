"""Times the vision encoder of Qwen2.5-VL at its 3B sizes on one GPU: upstream eager, `torch.compile`, the generated one.

    python benchmarks/gpu.py [--contenders eager,vgen] [--json FILE]

Random weights, bf16. Each contender runs in a process of its own, one after the other; medians of synchronised runs. The
differences from eager are those of the first patches in fp32, with the same weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTENDERS = ("eager", "torch.compile", "vgen")
GRIDS = {"1x1036²": [(1, 74, 74)], "8x448²": [(1, 32, 32)] * 8, "1x224²": [(1, 16, 16)]}
SIZES = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}


def encoder(contender: str, dtype: Any) -> Any:
    import torch
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as upstream
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(**SIZES)
    with torch.device("cuda"):
        if contender == "vgen":
            from vgen.generated.qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
            from vgen.runtime import options

            with options(compile_mm_encoder=True):
                return Qwen2_5_VisionTransformerPretrainedModel._from_config(config, dtype=dtype).eval()
        made = upstream.Qwen2_5_VisionTransformerPretrainedModel._from_config(config, dtype=dtype).eval()
    return torch.compile(made) if contender == "torch.compile" else made


def patches(grid: list[tuple[int, int, int]], dtype: Any) -> Any:
    import torch

    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randn(sum(t * h * w for t, h, w in grid), 1176, device="cuda", generator=generator).to(dtype)


def median_ms(run: Callable[[], object], repeats: int = 20) -> float:
    import torch

    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def measure(contender: str) -> dict[str, float]:
    import torch

    made = encoder(contender, torch.bfloat16)
    found: dict[str, float] = {}
    with torch.inference_mode():
        for name, grid in GRIDS.items():
            grid_thw, pixels = torch.tensor(grid, device="cuda"), patches(grid, torch.bfloat16)
            begun = time.perf_counter()
            made(pixels, grid_thw=grid_thw)
            torch.cuda.synchronize()
            found[f"{name}, first call, s"] = time.perf_counter() - begun
            made(pixels, grid_thw=grid_thw)
            found[f"{name}, ms"] = median_ms(lambda p=pixels, g=grid_thw: made(p, grid_thw=g))
    found["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    if contender == "vgen":
        from vgen.runtime import counters

        count = counters()["qwen2_5_vl.encoder"]
        found["compiles"] = count.compiles
        print(f"fallbacks: {dict(count.fallbacks)}", file=sys.stderr)
        found["difference from eager in fp32"] = difference()
    return found


def difference() -> float:
    """The largest absolute difference of the generated encoder from upstream's, both fp32."""
    import torch

    grid = [(1, 16, 16), (1, 8, 20)]
    grid_thw, pixels = torch.tensor(grid, device="cuda"), patches(grid, torch.float32)
    generated, upstream = encoder("vgen", torch.float32), encoder("eager", torch.float32)
    generated.load_state_dict(upstream.state_dict())
    with torch.inference_mode():
        ours, theirs = (each(pixels, grid_thw=grid_thw).pooler_output for each in (generated, upstream))
    return (ours - theirs).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="comma-separated")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments.contender)))
        return
    import torch
    import transformers

    results: dict[str, dict[str, float]] = {}
    for contender in arguments.contenders.split(","):
        done = subprocess.run(
            [sys.executable, __file__, "--contender", contender], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            print(f"{contender} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            continue
        sys.stderr.write("".join(line + "\n" for line in done.stderr.splitlines() if "fallbacks" in line))
        print(f"{contender}: {done.stdout.strip().splitlines()[-1]}", file=sys.stderr)
        results[contender] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}")
    rows = dict.fromkeys(name for found in results.values() for name in found)
    print("| |" + "".join(f" {contender} |" for contender in results))
    print("| --- |" + " --- |" * len(results))
    for row in rows:
        cells = [f" {found[row]:.4g} |" if row in found else " |" for found in results.values()]
        print(f"| {row} |" + "".join(cells))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
