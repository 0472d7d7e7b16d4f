"""Makes the entries of generated packages on the meta device and compares them with upstream's: one JSON object a line.

    python catalogue_worker.py FOLDER MODEL…

FOLDER holds the generated packages. Run as a program of its own by `test_catalogue.py`: it imports hundreds of modules.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def compare(upstream: Any, generated: Any) -> str:
    """Empty where both have the same modules under the same names, and parameters of the same names and shapes."""
    ours, theirs = ({k: tuple(v.shape) for k, v in each.state_dict().items()} for each in (generated, upstream))
    if ours != theirs:
        return f"its parameters differ: {sorted(set(ours.items()) ^ set(theirs.items()))[:3]}"
    trees = [[(name, type(part).__name__) for name, part in each.named_modules()] for each in (generated, upstream)]
    if trees[0] != trees[1]:
        return f"its modules differ: {next(pair for pair in zip(*trees, strict=False) if pair[0] != pair[1])}"
    return ""


def check(model: str, package: str) -> dict[str, Any]:
    """What became of each entry: "same", "upstream: …" where upstream itself can't be made from its config's defaults,
    or what is wrong."""
    import torch

    module = importlib.import_module(package)
    upstream = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    found: dict[str, str] = {}
    regions: set[str] = set()
    for name in module.__all__:
        theirs, ours = getattr(upstream, name), getattr(module, name)
        try:
            with torch.device("meta"):
                expected = theirs(theirs.config_class())
        except Exception as error:
            found[name] = f"upstream: {type(error).__name__}: {str(error)[:150]}"
            continue
        with torch.device("meta"):
            made = ours(theirs.config_class())
        found[name] = compare(expected, made) or "same"
        regions.update(type(part).__name__ for part in made.modules() if hasattr(type(part), "region"))
    return {"entries": found, "regions": sorted(regions)}


def main() -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    logging.disable(logging.WARNING)
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder.parent))
    for model in sys.argv[2:]:
        result: dict[str, Any] = {"model": model}
        try:
            result |= check(model, f"{folder.name}.{model}")
        except Exception as error:
            result["error"] = "".join(traceback.format_exception(error)[-2:])[-500:]
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
