"""Whether upstream's modules and classes are as they were: by the identity of every attribute."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

# What Python or torch itself keeps on a class and makes anew when asked.
_TRANSIENT = frozenset({"__abstractmethods__", "__annotations__", "__annotations_cache__", "__weakref__", "__dict__"})


def take(prefixes: Iterable[str]) -> dict[tuple[str, ...], Any]:
    """Every attribute of the loaded modules below these names and of the classes that they define."""
    prefixes = tuple(prefixes)
    found: dict[tuple[str, ...], Any] = {}
    for name, module in list(sys.modules.items()):
        if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            continue
        for key, value in list(vars(module).items()):
            found[name, key] = value
            if isinstance(value, type) and value.__module__ == name:
                found.update(
                    {
                        (name, key, attribute): each
                        for attribute, each in list(vars(value).items())
                        if attribute not in _TRANSIENT
                    }
                )
    return found


def changed(before: dict[tuple[str, ...], Any], after: dict[tuple[str, ...], Any]) -> list[str]:
    """The names of what another object stands for, or what came or went; modules that were loaded meanwhile aside."""
    modules = {key[0] for key in before}
    names = {key for key in before.keys() | after.keys() if key[0] in modules}
    missing = object()
    # A submodule that is imported becomes an attribute of its package.
    return sorted(
        ".".join(key)
        for key in names
        if before.get(key, missing) is not after.get(key, missing)
        and ".".join(key) not in sys.modules
        and (key in before or not _is_lazy(key))
    )


def _is_lazy(key: tuple[str, ...]) -> bool:
    """Whether a module of Transformers' says where it imports an attribute from when it is first asked for."""
    module, *attributes = key
    return len(attributes) == 1 and attributes[0] in getattr(sys.modules.get(module), "_class_to_module", ())
