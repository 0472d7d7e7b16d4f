# SPDX-License-Identifier: Apache-2.0
"""The Python that a compiled form was made of: whether it is the same in another process, and still is.

Files say too little: a function of a module, or a method of a class, may have been exchanged for another one. So what counts is
what the names that the traced code has lead to.
"""

import gc
import hashlib
import linecache
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import chain
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from .watch import Watch

Digests = dict[str, str]
Lines = dict[str, list[tuple[int, int]]]

_NAME = re.compile(r"[^\W\d]\w*")
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
_FUNCTIONS = (FunctionType, MethodType, property, cached_property, staticmethod, classmethod)
# Of a function: what it was decorated with, and what that was given.
_DEPTH = 4
_HEAP_TYPE = 1 << 9
# No graph makes modules; Dynamo exchanges these.
_MAKING = {"__init__", "__setstate__"}


class Traced:
    """What the names in code that was traced lead to, in modules and classes.

    Attributes:
        digests: What was found in each, by import name; those of a class have a colon.
        changed: Where something else was found than had to be.

    Args:
        lines: Where the functions are that Dynamo traced: see `lines_of`.
        kinds: Classes whose methods may have been called, besides those that the code names.
        wanted: What has to be found.
    """

    def __init__(self, lines: Lines, kinds: Iterable[type], wanted: Mapping[str, str]) -> None:
        """
        Raises:
            UnwatchableError: See `Watch`.
        """
        self._own = {module: _names_in(module, parts) for module, parts in lines.items()}
        self._all = set(chain.from_iterable(self._own.values()))
        self._kinds = tuple(kinds)
        self._wanted = wanted
        self.look()

    def holds(self) -> bool:
        """Whether all is as it has to be."""
        if not self._watch.holds():
            # Most writes to a module don't matter: Dynamo puts there what it compiles.
            self.look()
        return not self.changed

    def look(self) -> None:
        """Look anew, also at what was imported since."""
        places = list(self._places())
        self._watch = Watch([own for _, own, _ in places], [])
        self.digests: Digests = {where: _digest(where, own, names) for where, own, names in places}
        # What isn't imported here wasn't changed here either.
        self.changed = [each for each, found in self._wanted.items() if self.digests.get(each, found) != found]

    def _places(self) -> Iterator[tuple[str, dict[str, Any], set[str]]]:
        """The modules and classes, by import name: their dicts, and the names that count there."""
        waiting = {name: sys.modules[name] for name in sorted(self._own) if name in sys.modules}
        kinds = dict.fromkeys(self._kinds)
        for module in waiting.values():
            kinds |= dict.fromkeys(
                each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__
            )
        seen = set(waiting)
        while waiting:
            where, module = waiting.popitem()
            own = vars(module)
            names = self._own.get(where, self._all)
            yield where, own, names
            for name in own.keys() & names:
                value = own[name]
                if isinstance(value, type):
                    kinds |= dict.fromkeys(value.__mro__)
                elif isinstance(value, ModuleType) and value.__name__ not in seen and _is_plain(value):
                    seen.add(value.__name__)
                    waiting[value.__name__] = value
        for kind in kinds:
            if kind.__flags__ & _HEAP_TYPE:
                # What a class shows is a view of it.
                own = gc.get_referents(kind.__dict__)[0]
                special = {name for name in own if name[:2] == "__" and isinstance(own[name], _FUNCTIONS)}
                if issubclass(kind, nn.Module):
                    special -= _MAKING
                yield f"{kind.__module__}:{kind.__qualname__}", own, self._all | special


def lines_of(sources: Iterable[Any]) -> Lines:
    """The first and the last line of each of the functions that Dynamo traced, by module."""
    found: dict[str, set[tuple[int, int]]] = {}
    for each in sources:
        found.setdefault(each.module, set()).add((each.firstlineno, each.lastlineno))
    return {module: sorted(parts) for module, parts in sorted(found.items())}


def kinds_of(module: nn.Module, arguments: Mapping[str, Any]) -> frozenset[type]:
    """The classes of a module tree, of arguments, and of the layers of caches among them."""
    caches = (each for each in arguments.values() if isinstance(each, Cache))
    layers = chain.from_iterable(getattr(each, "layers", ()) for each in caches)
    found = set(map(type, chain(module.modules(), arguments.values(), layers)))
    return frozenset(chain.from_iterable(each.__mro__ for each in found))


def _is_plain(module: ModuleType) -> bool:
    """Whether what a module has is there from the beginning, and may be exchanged by somebody. Python's own aren't, nor are the
    insides of PyTorch, which change while it compiles."""
    top, _, rest = module.__name__.partition(".")
    is_inside = top == "torch" and rest[:1] == "_"
    return type(module) is ModuleType and top not in sys.stdlib_module_names and not is_inside


def _names_in(name: str, parts: Iterable[tuple[int, int]]) -> set[str]:
    """Those in some lines of a module."""
    module = sys.modules.get(name)
    spec = find_spec(name) if module is None else None
    # To import a module may change others.
    path = spec.origin if spec is not None else getattr(module, "__file__", None)
    lines = linecache.getlines(path or "")
    text = "".join(chain.from_iterable(lines[first - 1 : last] for first, last in parts))
    return {each for each in _NAME.findall(text) if each[:2] != "__"}


def _digest(where: str, own: Mapping[str, Any], names: set[str]) -> str:
    found = hashlib.sha256()
    for name in sorted(own.keys() & names):
        value = own[name]
        # A module inside of this one is there once it is imported.
        if not isinstance(value, ModuleType) or value.__name__ != f"{where}.{name}":
            found.update(f"{name}={_spell(value, _DEPTH)}\n".encode())
    return found.hexdigest()[:32]


def _spell(value: Any, depth: int) -> str:
    """A value in words that another process has for it too. Of objects no more than the class."""
    if isinstance(value, type | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, ModuleType):
        return value.__name__
    if type(value) in _PLAIN:
        return repr(value)
    if depth:
        if isinstance(value, FunctionType):
            cells = (each.cell_contents for each in value.__closure__ or () if each != CellType())
            given = (*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
            return f"{value.__module__}.{value.__qualname__} {_code(value.__code__)} {_spell(given, depth - 1)}"
        if isinstance(value, staticmethod | classmethod | MethodType):
            return _spell(value.__func__, depth)
        if isinstance(value, property | cached_property):
            return _spell(value.fget if isinstance(value, property) else value.func, depth)
        if isinstance(value, partial):
            return _spell((value.func, value.args, tuple(value.keywords.items())), depth - 1)
        if type(value) is tuple:
            return f"({', '.join(_spell(each, depth) for each in value)})"
    return _spell(type(value), 0)


# Held, since the digest of a code object is found by its address.
_codes: dict[int, tuple[CodeType, str]] = {}


def _code(code: CodeType) -> str:
    """The digest of what a function does, wherever it stands."""
    known = _codes.get(id(code))
    if known is None:
        constants = [_code(each) if isinstance(each, CodeType) else _constant(each) for each in code.co_consts]
        parts = (code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, code.co_flags, constants)
        known = _codes[id(code)] = (code, hashlib.sha256(repr(parts).encode()).hexdigest()[:32])
    return known[1]


def _constant(value: Any) -> str:
    # A set has its elements in the order of their hashes.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
