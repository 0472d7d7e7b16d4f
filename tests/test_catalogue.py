"""The whole catalogue: every model of the installed Transformers is built, imported, and made like upstream's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vgen.codegen import source

pytestmark = pytest.mark.slow
WORKERS = 2
SHARE = 0.97
"""The least part of the model types with a decoder or an encoder that has to be built."""


@pytest.fixture(scope="module")
def made(everything: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """What became of each package: see `catalogue_worker`."""
    folder, _ = everything
    models = sorted(path.parent.name for path in folder.glob("*/vgen.lock"))
    worker = Path(__file__).with_name("catalogue_worker.py")
    running = [
        subprocess.Popen(
            [sys.executable, str(worker), str(folder), *models[first::WORKERS]], stdout=subprocess.PIPE, text=True
        )
        for first in range(WORKERS)
    ]
    lines = [line for each in running for line in each.communicate()[0].splitlines()]
    found = {result["model"]: result for result in map(json.loads, lines)}
    assert sorted(found) == models, "a worker ended early"
    return found


def test_nearly_every_model_type_is_built(everything: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = everything
    installed = source.installed()
    listed = installed.auto_models("AutoModel")
    folders = {model_type: installed.folders.get(model_type, model_type) for model_type in listed}
    missing = sorted(model_type for model_type, name in folders.items() if not (folder / name / "vgen.lock").is_file())
    assert len(missing) <= (1 - SHARE) * len(folders), missing


def test_packages_import(made: dict[str, Any]) -> None:
    """All but those whose upstream module needs a library that isn't installed, and says so."""
    broken = {model: result["error"] for model, result in made.items() if "error" in result}
    assert {
        model for model, error in broken.items() if "but it was not found in your environment" not in error
    } == set()


def test_every_entry_is_made_like_upstreams(made: dict[str, Any]) -> None:
    wrong = {
        f"{model}.{name}": outcome
        for model, result in made.items()
        for name, outcome in result.get("entries", {}).items()
        if outcome != "same" and not outcome.startswith("upstream: ")
    }
    assert wrong == {}


def test_most_entries_can_be_made(made: dict[str, Any]) -> None:
    """So that the test above compares something: upstream's own defaults fail for about one entry in ten."""
    outcomes = [outcome for result in made.values() for outcome in result.get("entries", {}).values()]
    assert outcomes.count("same") > 0.85 * len(outcomes)


def test_models_have_regions(made: dict[str, Any]) -> None:
    """Where an entry could be made, a region is in one of them, if only in a part that another package builds."""
    without = [
        model
        for model, result in made.items()
        if "same" in result.get("entries", {}).values() and not result["regions"]
    ]
    assert without == []
