"""Makes a table, and plots where matplotlib is installed (`pip install '.[benchmarks]'`), of what `gpu.py` measured.

    python benchmarks/report.py FOLDER… [--into docs/benchmarks/NAME]

Of several folders, later ones give what earlier ones lack, and the table says which of the runs a figure is of.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BASE = "eager"
"""Ratios are to this contender."""


def table(*raws: dict[str, Any]) -> str:
    """Markdown: for each model, rows of what was measured and columns of contenders."""
    runs = []
    for number, raw in enumerate(raws, 1):
        machine = raw["machine"]
        runs.append(
            f"{f'Run {number}: ' if len(raws) > 1 else ''}{machine['device']}, {machine['cores']} CPU cores, "
            f"Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}.\n\n"
            f"`{machine['command']}`\n"
        )
    parts = ["\n".join(runs)]
    parts.append("\nTimes are medians, with the least and the largest; in brackets how many times as fast as eager.\n")
    if len(raws) > 1:
        parts.append("A small number is the run that a column's task was measured in; ratios may be across runs.\n")
    for model, results in merged(raws).items():
        contenders = [name for name in results if any("ms" in found for found in results[name].values())]
        parts.append(f"\n## {model}\n\n| |" + "".join(f" {name} |" for name in contenders))
        parts.append("\n| --- |" + " ---: |" * len(contenders) + "\n")
        for label, cells in _rows(results, contenders):
            if any(cells):
                parts.append(f"| {label} |" + "".join(f" {cell} |" for cell in cells) + "\n")
        failures = [
            f"\n- {name}, {task}: {found['failure'][:100]}"
            for name, tasks in results.items()
            for task, found in tasks.items()
            if found.get("failure")
        ]
        parts.append("".join(failures) + "\n" if failures else "")
    return "".join(parts)


def merged(raws: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """What was found by model, contender and task: of each task, the first run that has times."""
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for number, raw in enumerate(raws, 1):
        for model, results in raw["models"].items():
            for name, tasks in results.items():
                own = models.setdefault(model, {}).setdefault(name, {})
                for task, found in tasks.items():
                    if isinstance(found, dict) and "ms" not in own.get(task, {}):
                        own[task] = {**found, "run": number if len(raws) > 1 else None}
    return models


def _rows(results: dict[str, Any], contenders: list[str]) -> Iterator[tuple[str, list[str]]]:
    tasks = dict.fromkeys(task for name in contenders for task in results[name])
    for task in tasks:
        found = {name: results[name].get(task) or {} for name in contenders}
        rows = dict.fromkeys(row for each in found.values() for row in each.get("ms", {}))
        for row in rows:
            times = {name: found[name].get("ms", {}).get(row) for name in contenders}
            label = f"{row}, ms a step" if task.startswith("decode") else row if "graphs" in row else f"{row}, ms"
            cells = [_cell(times[name], times.get(BASE), is_count="graphs" in row) for name in contenders]
            marks = [f"<sup>{found[name]['run']}</sup>" if found[name].get("run") else "" for name in contenders]
            yield label, [cell and cell + mark for cell, mark in zip(cells, marks, strict=True)]
            if task.startswith("decode"):
                batch = int(task.split("-")[1])
                rates = [1e3 * batch / statistics.median(each) if each else None for each in times.values()]
                yield f"{row}, tokens/s", [_number(rate) for rate in rates]
        firsts = dict.fromkeys(row for each in found.values() for row in each.get("first_ms", {}))
        for row in firsts:
            seconds = [found[name].get("first_ms", {}).get(row) for name in contenders]
            yield f"{row}, first call, s", [_number(each and each / 1e3) for each in seconds]
        yield (
            f"{task}, from the process's start to the first output, s",
            [_number(found[name].get("output_s")) for name in contenders],
        )
        yield f"{task}, graphs compiled so far", [_number(found[name].get("graphs")) for name in contenders]
        different = [(found[name].get("difference") or {}).get(task) for name in contenders]
        yield f"{task}, largest difference from eager in fp32", [_number(each) for each in different]
        yield f"{task}, peak memory so far, GiB", [_number(found[name].get("memory_gib")) for name in contenders]


def _cell(times: list[float] | None, base: list[float] | None, *, is_count: bool) -> str:
    if not times:
        return ""
    median = statistics.median(times)
    if is_count:
        return f"{median:.0f}"
    ratio = f" [{statistics.median(base) / median:.2f}×]" if base else ""
    return f"{median:.3g} ({min(times):.3g} to {max(times):.3g}){ratio}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def plot(raws: Sequence[dict[str, Any]], into: Path) -> list[Path]:
    """One bar chart a model: how many times as fast as eager each contender is."""
    import matplotlib
    from matplotlib import pyplot

    # The same file for the same figures.
    matplotlib.rcParams["svg.hashsalt"] = "vgen"
    made = []
    for model, results in merged(raws).items():
        medians: dict[str, dict[str, float]] = {}
        for name, tasks in results.items():
            for found in tasks.values():
                for row, times in found.get("ms", {}).items():
                    if "stream" not in row:
                        medians.setdefault(row, {})[name] = statistics.median(times)
        rows = {row: each for row, each in medians.items() if BASE in each}
        contenders = [name for name in results if any(name in each for each in rows.values())]
        if not rows:
            continue
        figure, axes = pyplot.subplots(figsize=(1.6 * len(rows) + 3, 4))
        width = 0.8 / len(contenders)
        for index, name in enumerate(contenders):
            at = [place + index * width for place, each in enumerate(rows.values()) if name in each]
            axes.bar(at, [each[BASE] / each[name] for each in rows.values() if name in each], width, label=name)
        axes.set_xticks([place + 0.4 - width / 2 for place in range(len(rows))], list(rows))
        axes.set_ylabel("times as fast as eager")
        axes.set_title(f"{model}, {raws[0]['machine']['device']}")
        axes.legend()
        figure.tight_layout()
        made.append(into / f"{model}.svg")
        figure.savefig(made[-1], metadata={"Date": None})
        pyplot.close(figure)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--into", type=Path, help="where the table and the plots go; the first folder by default")
    arguments = parser.parse_args()
    raws = [json.loads((folder / "raw.json").read_text(encoding="utf-8")) for folder in arguments.folders]
    into = arguments.into or arguments.folders[0]
    into.mkdir(parents=True, exist_ok=True)
    (into / "table.md").write_text(table(*raws), encoding="utf-8")
    try:
        print(*plot(raws, into), sep="\n")
    except ImportError:
        print("No plots: `pip install '.[benchmarks]'` first.")


if __name__ == "__main__":
    main()
