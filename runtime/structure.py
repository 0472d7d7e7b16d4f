# SPDX-License-Identifier: Apache-2.0
"""A module without its parameters, as text: what an operator needs to run the module's code on tensors that it is given.

The text is the same for layers that are alike, and says all that there is to say: it can be a constant of a graph, also of one
that is saved and loaded by another process.
"""

import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import nn

_PLAIN = (bool, int, float, str, type(None))
# What every module has.
_OWN = frozenset(vars(nn.Module()))


class StructureError(Exception):
    """A module that can't be told as text; the message says why."""


def describe_structure(module: nn.Module, kind: str, *, ignored: Sequence[str] = ()) -> str:
    """A module, without its parameters, as text.

    Args:
        module: What is described, but for hooks and for which parts are in training: all are as it is.
        kind: The class that stands for the module's own, `module:Class`: one of its bases.
        ignored: Attributes of it that its code doesn't read.

    Raises:
        StructureError: It holds something other than plain values, functions, plain parameters and modules of such, or
            holds something twice.
    """
    if find(kind) not in type(module).__bases__:
        raise StructureError(f"{_name(type(module))} isn't a subclass of {kind}")
    parts, name = list(module.modules()), type(module).__name__
    present = [each for part in parts for each in part._parameters.values() if each is not None]
    children = [child for part in parts for child in part._modules.values() if child is not None]
    if len({id(each) for each in present}) < len(present) or len({id(each) for each in children}) < len(children):
        raise StructureError(f"{name} holds a parameter or a module twice")
    if any(part._buffers for part in parts):
        raise StructureError(f"{name} holds buffers")
    for each in present:
        if type(each) is not nn.Parameter or each.is_meta or each.layout is not torch.strided:
            raise StructureError(f"{name} holds a {_name(type(each))} on {each.device}")
    described = {"training": module.training, **_described(module, kind, frozenset(ignored))}
    return json.dumps(described, separators=(",", ":"))


def likeness(module: nn.Module, *, ignored: Sequence[str] = ()) -> str:
    """All that a description of a module and of those below says; empty where one can't be made."""
    try:
        return json.dumps(_described(module, _name(type(module)), frozenset(ignored)), separators=(",", ":"))
    except StructureError:
        return ""


def described_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The plain values and functions that a description of a module holds, its own and those of the modules below, by dotted path."""
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in _OWN and (type(value) in _PLAIN or _function(value) is not None):
                yield (f"{prefix}.{name}" if prefix else name), value


@contextmanager
def assembled(structure: str, tensors: Sequence[torch.Tensor]) -> Iterator[Any]:
    """The module of a description, with these tensors as its parameters, in the order of `Module.parameters`."""
    made = _spare(structure)
    template = made.pop() if made else _Template(json.loads(structure))
    try:
        yield template.filled(tensors)
    finally:
        template.clear()
        made.append(template)


def _described(module: nn.Module, kind: str, ignored: frozenset[str]) -> dict[str, Any]:
    values, functions = {}, {}
    for name, value in vars(module).items():
        if name in _OWN or name in ignored:
            continue
        if type(value) in _PLAIN:
            values[name] = value
        elif (found := _function(value)) is not None:
            functions[name] = found
        else:
            raise StructureError(f"{kind} has an attribute {name} of {_name(type(value))}")
    modules = {}
    for name, child in module._modules.items():
        own = None if child is None else _path(type(child))
        if child is not None and own is None:
            raise StructureError(f"the class {_name(type(child))} can't be imported")
        modules[name] = None if child is None or own is None else _described(child, own, frozenset())
    return {
        "class": kind,
        "values": values,
        "functions": functions,
        "parameters": {name: each is not None for name, each in module._parameters.items()},
        "modules": modules,
    }


class _Template:
    """A module of a description, empty but for calls that fill it. One call has it at a time."""

    def __init__(self, described: dict[str, Any]) -> None:
        self._module = _built(described).train(described["training"])
        self._slots = [
            (part._parameters, name)
            for part, known in zip(self._module.modules(), _known(described), strict=True)
            for name, is_given in known.items()
            if is_given
        ]

    def filled(self, tensors: Sequence[torch.Tensor]) -> nn.Module:
        for (table, name), tensor in zip(self._slots, tensors, strict=True):
            # In their tables, where attributes are looked up: setting them would ask for parameters.
            table[name] = tensor  # type: ignore[assignment]
        return self._module

    def clear(self) -> None:
        for table, name in self._slots:
            table[name] = None


def _built(described: dict[str, Any]) -> nn.Module:
    """A module with nothing but what is described: no constructor but that of `nn.Module` runs."""
    cls = find(described["class"])
    module: nn.Module = cls.__new__(cls)
    nn.Module.__init__(module)
    vars(module).update(described["values"])
    for name, (path, given) in described["functions"].items():
        vars(module)[name] = partial(find(path), **given) if given else find(path)
    module._parameters.update(dict.fromkeys(described["parameters"]))
    module._modules.update(
        {name: None if each is None else _built(each) for name, each in described["modules"].items()}
    )
    return module


def _known(described: dict[str, Any]) -> Iterator[dict[str, bool]]:
    """The names of the parameters of each module, and whether they are there, in the order of `Module.modules`."""
    yield described["parameters"]
    for each in described["modules"].values():
        if each is not None:
            yield from _known(each)


@cache
def _spare(structure: str) -> list[_Template]:
    """The templates of a description that no call has. Taking one off a list and putting it back takes no lock."""
    return []


def _function(value: Any) -> tuple[str, dict[str, Any]] | None:
    """A function, and what it is given by `partial`."""
    function, given = (value.func, value.keywords) if type(value) is partial and not value.args else (value, {})
    path = _path(function) if callable(function) else None
    return (path, given) if path is not None and all(type(each) in _PLAIN for each in given.values()) else None


def _path(value: Any) -> str | None:
    """`module:name` of a class or function, where that leads to it."""
    path = f"{getattr(value, '__module__', None)}:{getattr(value, '__qualname__', None)}"
    try:
        return path if find(path) is value else None
    except (ImportError, AttributeError, ValueError):
        return None


@cache
def find(path: str) -> Any:
    """What `module:name` names."""
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
