"""A tiny model of every model type that has a package, made and run once."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
WORKERS = 2
CHUNK = 60
"""Packages to a process: each imports a modeling module and leaves its tiny models to the garbage."""
SHARE, SMALL = 0.86, 0.9
"""The least part of the model types that has to run, and of those the least that is under a million parameters: what holds
today. 0.9 and 0.97 are aimed at; a failure lists what is missing."""


@pytest.fixture(scope="module")
def results(everything: tuple[Path, dict[str, Any]]) -> list[dict[str, Any]]:
    """What became of each model type: see `catalogue_worker`."""
    folder, _ = everything
    models = sorted(path.parent.name for path in folder.glob("*/vgen.lock"))
    chunks = [models[first : first + CHUNK] for first in range(0, len(models), CHUNK)]
    with ThreadPoolExecutor(WORKERS) as pool:
        found = [result for results in pool.map(partial(_run, folder), chunks) for result in results]
    assert {each["model"] for each in found} == set(models), "a process ended early"
    return found


def _run(folder: Path, models: list[str]) -> list[dict[str, Any]]:
    worker = Path(__file__).with_name("catalogue_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(folder), *models], stdout=subprocess.PIPE, text=True, check=False
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _counted(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that count: not the parts of models that no auto class makes. A missing library counts as a failure."""
    from transformers.models.auto import modeling_auto

    made = {
        model_type
        for name, mapping in vars(modeling_auto).items()
        if name.startswith("MODEL_") and name.endswith("_NAMES")
        for model_type in mapping
    }
    return [each for each in results if each["type"] in made]


def test_nearly_every_model_type_runs(results: list[dict[str, Any]]) -> None:
    counted = _counted(results)
    failed = [f"{each['type']}: {each['error']}" for each in counted if "failed" in each]
    assert len(failed) <= (1 - SHARE) * len(counted), "\n".join(failed)


def test_outputs_are_numbers_that_depend_on_the_inputs(results: list[dict[str, Any]]) -> None:
    ran = [each for each in results if "failed" not in each]
    odd = [each["type"] for each in ran if not (each["finite"] and each["sensitive"])]
    assert len(odd) <= 0.02 * len(ran), odd


def test_nearly_all_are_tiny(results: list[dict[str, Any]]) -> None:
    ran = [each for each in results if "failed" not in each]
    large = [(each["type"], each["parameters"]) for each in ran if each["parameters"] > 1_000_000]
    assert len(large) <= (1 - SMALL) * len(ran), large
