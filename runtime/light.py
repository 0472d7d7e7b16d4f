# SPDX-License-Identifier: Apache-2.0
"""Artifacts that start without Inductor: what loads them imports neither its lowerings nor its templates, which takes longer
than everything else."""

import re
from typing import Any

import torch
from torch._functorch._aot_autograd.aot_autograd_result import BundledCompiledForward
from torch._inductor.output_code import CompiledFxGraph, CompiledFxGraphConstants

_ALIGN = "from torch._inductor.codegen.memory_planning import _align as align\n"
# Where that function is defined: a module that is imported anyway.
_LIGHT_ALIGN = "from torch._inductor.utils import _align as align\n"
_KERNELS = "from torch._inductor.select_algorithm import extern_kernels\n"


def lighten(compiled: Any) -> None:
    """Change what is saved of a compiled function: what runs in this process stays as it is.

    Args:
        compiled: PyTorch's AOTCompiledFunction. One that is put together in another way than is known here stays whole, and
            so does one with a backward, or with kernels of Triton's, which Inductor puts in place.
    """
    function: Any = getattr(compiled._artifacts.compiled_fn, "compiled_fn", None)
    if not hasattr(function, "serialize"):
        return
    entry = function.serialize()
    graph = getattr(entry.compiled_fw, "result", None)
    if entry.compiled_bw is not None or type(graph) is not CompiledFxGraph or _has_kernels(graph._triton_bundle):
        return
    graph.source_code = light(graph.source_code)
    # The name under which it will lie in Inductor's cache.
    from torch._inductor.codecache import code_hash

    graph.cache_key = code_hash(graph.source_code)
    entry.compiled_fw = LightForward(result=graph)
    function.serialize = lambda: entry


def _has_kernels(bundle: Any) -> bool:
    """Whether Triton's kernels come with a graph: a bundle may be there and hold none."""
    return bool(bundle) and any(getattr(bundle, "__dict__", {"": True}).values())


class LightForward(BundledCompiledForward[CompiledFxGraph]):
    """A graph that is made ready to run as PyTorch does it, without what records how it runs: that is in large modules."""

    def post_compile(self, result: CompiledFxGraph, fx_config: Any) -> Any:
        constants = CompiledFxGraphConstants()
        result.after_deserialization(constants)
        result.post_compile(self.example_inputs, constants, fx_config)
        run: Any = result.current_callable

        def call(inputs: list[Any]) -> Any:
            return run(inputs)

        # Its inputs come in a list, which it empties.
        call._boxed_call = True  # type: ignore[attr-defined]
        return call


def light(code: str) -> str:
    """Inductor's code of a graph with its header's imports changed, to the same effect."""
    from torch._inductor import utils
    from torch._inductor.select_algorithm import extern_kernels

    if hasattr(utils, "_align"):
        code = code.replace(_ALIGN, _LIGHT_ALIGN, 1)
    used = set(re.findall(r"\bextern_kernels\.(\w+)", code))
    # Products of matrices are PyTorch's own functions; others are Inductor's.
    if all(getattr(extern_kernels, name, None) is getattr(torch, name, extern_kernels) for name in used):
        code = code.replace(_KERNELS, "import torch as extern_kernels\n" if used else "", 1)
    return code
