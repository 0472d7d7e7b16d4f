"""What a contender's calls are spent on: kernels, and functions of the host."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def profiled(
    title: str,
    run: Callable[[Callable[[], None], Callable[[], None]], float],
    *,
    into: Path,
    calls: int,
    is_cuda: bool,
) -> dict[str, float]:
    """Milliseconds of one call, and of its kernels; tables of both are added to a file.

    Args:
        title: What is looked at.
        run: Makes some calls, of which it hands on the beginning and the end. Returns the milliseconds of one. It is run twice.
        into: The file.
        calls: How many there are between beginning and end.
        is_cuda: Whether they run on a GPU.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    recorder, host = profile(activities=activities), cProfile.Profile()

    def synchronize() -> None:
        if is_cuda:
            torch.cuda.synchronize()

    def begin() -> None:
        synchronize()
        recorder.start()

    def end() -> None:
        synchronize()
        recorder.stop()

    wall = run(begin, end)
    run(host.enable, host.disable)
    averages = recorder.key_averages()
    # An operator's own row has the time of its kernels once more.
    on_device = (each.self_device_time_total for each in averages if each.device_type is not DeviceType.CPU)
    kernels = sum(on_device) / calls / 1e3
    text = io.StringIO()
    print(f"{title}: {wall:.3f} ms with the profiler, {kernels:.3f} ms of kernels", file=text)
    order = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    print(averages.table(sort_by=order, row_limit=40, max_name_column_width=90), file=text)
    print(averages.table(sort_by="self_cpu_time_total", row_limit=25), file=text)
    for key in ("tottime", "cumulative"):
        pstats.Stats(host, stream=text).sort_stats(key).print_stats(45)
    with into.open("a", encoding="utf-8") as file:
        file.write(text.getvalue())
    return {"wall_ms": wall, "kernels_ms": kernels}
