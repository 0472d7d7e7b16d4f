# SPDX-License-Identifier: Apache-2.0
"""Which of Dynamo's guards are saved with a compiled form, and how they are made again where it is loaded."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from transformers.cache_utils import Cache

_OF_SELF = re.compile(r"\bself\b")


@cache
def compiled_function() -> Any:
    """PyTorch's saved function, whose guards are built without looking at dicts that aren't saved.

    Dynamo notes which dicts' keys must be in order, and looks them up where guards are built: those of modules, whose
    children `Fingerprint` has in order, and global ones, which may hold something else in another process.
    """
    from torch._dynamo.aot_compile import AOTCompiledFunction
    from torch._dynamo.package import load_guard_manager, load_guards_state
    from torch._guards import GuardsSet
    from torch.utils._ordered_set import OrderedSet

    class CompiledFunction(AOTCompiledFunction):
        def __post_init__(self) -> None:
            saved = self._artifacts
            state = load_guards_state(saved.guards_state)
            graph = state.output_graph
            graph.guard_on_key_order = {each for each in graph.guard_on_key_order if is_of_argument(each.name)}
            saved.guard_manager = load_guard_manager(state, saved.original_code, self._extra_globals)
            self.rest = None
            caches = [f"L[{name!r}]" for name, value in graph.local_scope.items() if isinstance(value, Cache)]
            if caches:
                graph._guards = GuardsSet(OrderedSet(each for each in graph.guards if not _is_of_state(each, caches)))
                self.rest = load_guard_manager(state, saved.original_code, self._extra_globals)
            super().__post_init__()

    return CompiledFunction


def is_of_argument(name: str) -> bool:
    """Whether one of Dynamo's sources, by its name, is an argument other than the module, or in one."""
    return name.startswith("L[") and not _OF_SELF.search(name)


def _is_of_state(guard: Any, caches: Sequence[str]) -> bool:
    """Whether what one of Dynamo's guards says can only change with a cache's own state, or with sizes of arguments."""
    if guard.create_fn_name() == "SHAPE_ENV":
        return True
    name = guard.originating_source.name
    # Classes, and functions in them, are no state of a cache: `dict(type(L['cache']).__dict__)['f'].__defaults__`.
    return any(name != each and name.startswith(each) for each in caches)


def relates(compiled: Any, name: str) -> bool:
    """Whether an attribute of a module is among the sizes and numbers whose relations a form that can be saved was made for."""
    from torch._dynamo.package import load_guards_state

    parts = load_guards_state(compiled._artifacts.guards_state).shape_code_parts
    return parts is not None and any(f".{name}" in each for each in parts.python_code_parts.exprs)


def is_kept(entry: Any) -> bool:
    """Whether one of Dynamo's guards is saved: one on an argument or on the interpreter's state."""
    from torch._dynamo.guards import CheckFunctionManager

    unsupported = {*CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES, "GLOBAL_STATE"}
    return not (
        entry.is_global
        or "G[" in entry.name
        or _OF_SELF.search(entry.name)
        or entry.guard_type in unsupported
        or unsupported.intersection(entry.derived_guard_types)
    )
