"""What checking a decoder's call costs, for a decode step with a static cache: microseconds before any of it runs.

    python benchmarks/contract.py [--layers 1 2 4 8 28] [--json]

- region: all that `Region` does around a loaded artifact for such a call, with a compiled form that does nothing;
- arguments: the part that looks at the arguments (Dynamo's saved guards on them, but for those on a cache that is as it was in
  the step before, and the interpreter's state);
- module: the part that looks at the module tree (`Fingerprint.holds`);
- Dynamo: Dynamo's own guards for the same call, where it was compiled in this process.

The target is 20 microseconds for a decoder's call. The least of 7 times 500 calls counts. Each number of layers compiles twice.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import timeit
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from transformers import LlamaConfig, StaticCache

from vgen.generated.llama import LlamaModel
from vgen.runtime import region
from vgen.runtime.building import building
from vgen.runtime.region import Region

TARGET = 20.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Microseconds."""

    region: float
    arguments: float
    module: float
    dynamo: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4, 8, 28])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {layers: measure(layers) for layers in arguments.layers}
    if arguments.json:
        print(json.dumps({layers: asdict(cost) for layers, cost in found.items()}))
        return 0
    print("layers  region  arguments  module  Dynamo   (microseconds)")
    for layers, cost in found.items():
        print(f"{layers:6} {cost.region:7.1f} {cost.arguments:10.1f} {cost.module:7.1f} {cost.dynamo:7.1f}")
    return 0


@torch.no_grad()
def measure(layers: int) -> Cost:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaModel(LlamaConfig(num_hidden_layers=layers, vocab_size=200, **sizes)).eval()
    cache = StaticCache(config=model.config, max_cache_len=64)
    token = torch.ones(1, 1, dtype=torch.long)

    def step() -> None:
        model(input_ids=token, past_key_values=cache, use_cache=True)

    call = _captured(step)
    with tempfile.TemporaryDirectory() as name, building(Path(name)):
        step()
    form = model.__dict__["_vgen_variants"].forms._recent[0][1]
    fingerprint = model.__dict__["_vgen_variants"].forms._recent[0][0]
    form._run = lambda module, **arguments: None
    return Cost(
        region=_time(lambda: model.region(model, **call)),
        arguments=_time(lambda: form.accepts(model, call)),
        module=_time(fingerprint.holds),
        dynamo=_dynamo(model, call),
    )


def _captured(step: Callable[[], None]) -> dict[str, Any]:
    """The arguments of the core in a step, after which the cache is as it is between steps."""
    seen: dict[str, Any] = {}
    whole = Region.__call__

    def spy(self: Region, module: Any, **arguments: Any) -> Any:
        seen.update(arguments)
        return module.core(**arguments)

    Region.__call__ = spy  # type: ignore[method-assign]  # a benchmark may listen in on the class
    try:
        step()
    finally:
        Region.__call__ = whole  # type: ignore[method-assign]  # as it was
    return seen


def _dynamo(model: Any, call: dict[str, Any]) -> float:
    torch._dynamo.reset()  # type: ignore[no-untyped-call]  # untyped in PyTorch
    options = replace(model.vgen_options, backend="eager")
    core = region.CompiledCore(type(model).core, tag="benchmark", options=options, is_shared=False)
    core(model, call)
    (entry,) = _debug_get_cache_entry_list(type(model).core.__code__)
    scope = {"self": model, "kwargs": {}, "__class__": type(model)} | call
    check = entry.guard_manager.check
    assert check(scope)
    return _time(lambda: check(scope))


def _time(call: Callable[[], object]) -> float:
    call()
    return min(timeit.repeat(call, number=500, repeat=7)) / 500 * 1e6


if __name__ == "__main__":
    raise SystemExit(main())
