"""Times the kernels of a decode step on one GPU, against the memory's bandwidth: Qwen2.5-VL-3B's shapes, bf16, batch 1.

    python benchmarks/decode_kernels.py [--layers N]

Every product and every attention is replayed from a CUDA graph of as many layers as the model has, each with weights of its own,
so that nothing is read from a cache. Also windowed attention of its vision encoder, against flash attention.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from vgen.runtime.query_kernel import attend_in_parts
from vgen.runtime.row_kernel import multiply_row
from vgen.runtime.segment_kernel import attend_segments

MATRICES = {
    "query, key, value": (2048, [2048, 256, 256]),
    "output": (2048, [2048]),
    "gate, up": (2048, [11008, 11008]),
}
MATRICES |= {"down": (11008, [2048]), "head": (2048, [151936])}
CONFIGS = [
    (rows, columns, warps)
    for rows in (1, 2, 4, 8, 16)
    for columns in (512, 1024, 2048, 4096)
    for warps in (2, 4, 8)
    # What a thread holds at a time: neither so little that few bytes are on their way, nor more than it has registers for.
    if 16 <= rows * columns // (32 * warps) <= 128
]


SHOWN = 6
"""The fastest of them."""


def seconds(calls: list[Callable[[], object]]) -> float:
    """Of one call, when all are replayed from one graph."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times[2:])


def products(layers: int) -> Iterator[str]:
    for name, (columns, sizes) in MATRICES.items():
        count = 3 if name == "head" else layers
        x = torch.randn(1, 1, columns, device="cuda", dtype=torch.bfloat16)
        weights = [
            [torch.randn(size, columns, device="cuda", dtype=torch.bfloat16) for size in sizes] for _ in range(count)
        ]
        outputs = [x.new_empty(1, 1, size) for size in sizes]
        moved = 2 * columns * sum(sizes)

        def told(label: str, taken: float, moved: int = moved, name: str = name) -> str:
            return f"{name}: {label}: {1e6 * taken:.1f} us, {moved / taken / 1e12:.2f} TB/s"

        yield told("cuBLAS", seconds([functools.partial(_linears, x, each) for each in weights]))
        taken = {}
        for blocking in CONFIGS:
            calls = [functools.partial(multiply_row, x, each, [], outputs, blocking) for each in weights]
            taken["{} × {}, {} warps".format(*blocking)] = seconds(calls)
        default = seconds([functools.partial(multiply_row, x, each, [], outputs) for each in weights])
        yield told("as chosen", default)
        for label in sorted(taken, key=taken.__getitem__)[:SHOWN]:
            yield told(label, taken[label])
        del weights


def _linears(x: torch.Tensor, weights: list[torch.Tensor]) -> None:
    for weight in weights:
        linear(x, weight)


def attention(layers: int) -> Iterator[str]:
    for length in (576, 4096):
        query = torch.randn(1, 2, 8, 128, device="cuda", dtype=torch.bfloat16)
        caches = [torch.randn(2, 1, 2, length, 128, device="cuda", dtype=torch.bfloat16) for _ in range(layers)]
        mask = torch.arange(length, device="cuda").view(1, 1, 1, -1) < length - 20
        out = torch.empty_like(query)
        contenders: dict[str, Callable[[Any], object]] = {
            "PyTorch": lambda each, q=query, m=mask: scaled_dot_product_attention(q, *each, attn_mask=m),
            "in parts": lambda each, q=query, m=mask, o=out: attend_in_parts(q, *each, m, 0.1, o),
        }
        for label, run in contenders.items():
            taken = seconds([functools.partial(run, each) for each in caches])
            yield f"attention to {length} keys: {label}: {1e6 * taken:.1f} us"


def windows() -> Iterator[str]:
    from torch.nn.attention.varlen import varlen_attn

    qkv = torch.randn(5476, 3, 16, 80, device="cuda", dtype=torch.bfloat16)
    q, k, v = qkv.unbind(1)
    ends = torch.arange(0, 5476 + 64, 64, device="cuda", dtype=torch.int32).clamp_(max=5476)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    contenders: dict[str, Callable[[], object]] = {
        "flash": lambda: varlen_attn(q, k, v, ends, ends, 64, 64),
        "segments": lambda: attend_segments(q, k, v, ends, 64, 80**-0.5, out),
    }
    for label, run in contenders.items():
        yield f"windows of 64 in 5476 tokens: {label}: {1e6 * seconds([run] * 8):.1f} us"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=36)
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    with torch.no_grad():
        for part in (windows(), attention(arguments.layers), products(arguments.layers)):
            for line in part:
                print(line, flush=True)


if __name__ == "__main__":
    main()
