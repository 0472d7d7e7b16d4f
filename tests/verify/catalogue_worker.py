"""Makes tiny models of the entries of generated packages and runs each once: one JSON object a line.

    python catalogue_worker.py FOLDER MODEL…

FOLDER holds the generated packages. Upstream's classes are run; which of them, the packages say. Run as a program of its own
by `test_tiny_catalogue.py`: it imports hundreds of modules.
"""

from __future__ import annotations

import ast
import gc
import importlib
import json
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

DEADLINE = 60


def offered(folder: Path) -> list[str]:
    """The names in a package's `__all__`, read without importing it."""
    for statement in ast.parse((folder / "__init__.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    return []


def run(cls: Any) -> dict[str, Any]:
    """What became of a tiny model of this class."""
    import torch

    from vgen.verify.inputs import Request, make_inputs
    from vgen.verify.making import make_tiny
    from vgen.verify.measure import leaves
    from vgen.verify.sensitivity import depends_on

    stage = "making"
    try:
        tiny = make_tiny(cls)
        model, inputs = tiny.model, tiny.inputs
        parameters = sum(each.numel() for each in model.parameters())
        stage = "forward"
        started = time.perf_counter()
        with torch.no_grad():
            first = [each for _, each in leaves(model(**inputs)) if isinstance(each, torch.Tensor)]
        seconds = time.perf_counter() - started
        sensitive = depends_on(model, inputs, make_inputs(model, Request(seed=1)))
    except Exception as error:
        place = traceback.extract_tb((error.__cause__ or error).__traceback__)[-1]
        return {
            "failed": stage,
            "error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]} [{Path(place.filename).name}:{place.lineno}]",
        }
    finite = all(bool(torch.isfinite(each).all()) for each in first if each.is_floating_point()) if first else False
    return {
        "parameters": parameters,
        "attempt": tiny.attempt,
        "seconds": round(seconds, 3),
        "finite": finite,
        "sensitive": sensitive,
        "inputs": {
            name: list(value.shape) if hasattr(value, "shape") else repr(value) for name, value in inputs.items()
        },
    }


def main() -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    import torch

    from vgen.verify.entries import choose

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        try:
            upstream = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
            entries = choose({each: getattr(upstream, each) for each in offered(folder / name)})
        except Exception as error:
            print(
                json.dumps(
                    {
                        "model": name,
                        "type": name,
                        "failed": "import",
                        "error": f"{type(error).__name__}: {str(error)[:300]}",
                    }
                ),
                flush=True,
            )
            continue
        for model_type, cls in entries.items():
            print(json.dumps({"model": name, "type": model_type, "class": cls.__name__, **run(cls)}), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
