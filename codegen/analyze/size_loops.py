"""Calls of functions that loop over a size of what they are given, or compute in another way in a graph:

    for index in range(hidden_states.shape[1]):
        state = decay[:, index] * state + hidden_states[:, index]

A graph holds such a loop for one size only. One operator can hold it for all, where the function does nothing but compute what it
returns: then upstream's own runs inside of it. Whether that is so, and what the results' sizes are, is found out where a graph is
made (`runtime/probing.py`); here are left out functions whose source says that they do more.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Set
from dataclasses import dataclass

from ..facts import Ref
from . import graph_only
from .callgraph import RENAMING, call_graph, decorators
from .classes import Classes, has_models
from .experts import RANDOM
from .kinds import dotted

HOOKS = frozenset({"force_accelerate_hooks"})
"""Decorators that call hooks around a forward: they come along, and do no harm where upstream's own are called as well."""
MOST = 400
"""Lines of a function and of those that it calls, more than which none is looked into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looping:
    """A function that loops.

    Attributes:
        ref: Where it is defined; for a method, its class.
        name: As `module:…` has it: the function, or the class and the method.
        differs: It has a branch that only a graph takes.
        lines: Where it and what it calls stand: name, file, first and last line.
    """

    ref: Ref
    name: str
    differs: bool
    lines: tuple[tuple[str, str, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """The calls in a method: what is called as it is written there, and the function that it is."""

    method: str
    found: tuple[tuple[str, Looping], ...]
    first_line: int
    last_line: int


def find(classes: Classes, ref: Ref) -> tuple[Calls, ...]:
    """The methods in the body of a class of a model that call such functions."""
    node = classes.node(ref)
    file = classes.source.file(ref.file) if node is not None and has_models(ref.file) else None
    if (
        node is None
        or file is None
        or file.is_copy
        or ("in range(" not in file.text and not graph_only.asks(file.text))
    ):
        return ()
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    return tuple(
        found
        for name, method in methods.items()
        if name != "__init__" and not set(decorators(method)) - RENAMING - HOOKS
        for found in _calls(classes, ref, method)
    )


def _calls(classes: Classes, ref: Ref, method: ast.FunctionDef) -> Iterator[Calls]:
    rebound = {node.id for node in ast.walk(method) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    rebound |= {each.arg for each in ast.walk(method) if isinstance(each, ast.arg)}
    found, lines = dict[str, Looping](), list[int]()
    for node in ast.walk(method):
        if not isinstance(node, ast.Call):
            continue
        written = dotted(node.func)
        looping = None if written in rebound else _looping(classes, ref, written)
        if looping is not None:
            found[written] = looping
            lines += [node.lineno, node.end_lineno or node.lineno]
    if found:
        yield Calls(
            method=method.name, found=tuple(sorted(found.items())), first_line=min(lines), last_line=max(lines)
        )


def _looping(classes: Classes, ref: Ref, written: str) -> Looping | None:
    """The function that is called by that name, if it is such a one."""
    match written.split("."):
        case [name]:
            target = call_graph(classes).function(ref.file, name)
            return _summary(classes, target) if target is not None and has_models(target[0].file) else None
        case ["self", name]:
            own = classes.method(ref, name)
            if own is None or not has_models(own[0].file) or own[1].decorator_list or name == "forward":
                return None
            return _summary(classes, own) if not _reads_self(own[1]) else None
    return None


def _reads_self(method: ast.FunctionDef) -> bool:
    first = method.args.args[0].arg if method.args.args else ""
    return first != "self" or any(isinstance(node, ast.Name) and node.id == first for node in ast.walk(method))


def _summary(classes: Classes, target: tuple[Ref, ast.FunctionDef]) -> Looping | None:
    ref, function = target
    file = classes.source.file(ref.file)
    if file.is_copy:
        return None
    below = _below(classes, ref.file, function)
    if below is None or any(_does_more(each) for _, each in below):
        return None
    differs = any(graph_only.find(each) for _, each in below)
    if not differs and not any(_loops(each) for _, each in below):
        return None
    path = ref.name if ref.name == function.name else f"{ref.name}.{function.name}"
    lines = tuple((each.name, where, each.lineno, each.end_lineno or each.lineno) for where, each in below)
    return Looping(ref=ref, name=f"{file.module}:{path}", differs=differs, lines=lines)


def _below(classes: Classes, file: str, function: ast.FunctionDef) -> tuple[tuple[str, ast.FunctionDef], ...] | None:
    """A function and the others of models' files that it calls, None for too many."""
    pending, found = [(file, function)], dict[tuple[str, str], ast.FunctionDef]()
    while pending:
        where, here = pending.pop()
        if (where, here.name) in found:
            continue
        found[where, here.name] = here
        for node in ast.walk(here):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                target = call_graph(classes).function(where, node.func.id)
                if target is not None and has_models(target[0].file):
                    pending.append((target[0].file, target[1]))
        if sum((each.end_lineno or each.lineno) - each.lineno for each in found.values()) > MOST:
            return None
    return tuple((where, each) for (where, _), each in found.items())


def _does_more(function: ast.FunctionDef) -> bool:
    """Whether a function sets what others see, takes what can't be told as text, or draws random numbers."""
    for node in (each for statement in function.body for each in ast.walk(statement)):
        match node:
            case ast.Attribute(ctx=ast.Store()) | ast.Global() | ast.Nonlocal() | ast.Yield() | ast.YieldFrom():
                return True
            case ast.Await() | ast.ClassDef() | ast.Delete():
                return True
            case ast.Call(func=func) if any(word in dotted(func).rpartition(".")[2] for word in RANDOM):
                return True
    return False


def _loops(function: ast.FunctionDef) -> bool:
    """Whether a function has a loop over a range that depends on sizes."""
    sizes = sizes_of(function)
    return any(
        isinstance(node, ast.For | ast.comprehension)
        and isinstance(node.iter, ast.Call)
        and dotted(node.iter.func) == "range"
        and any(_is_of_sizes(each, sizes) for each in node.iter.args)
        for node in ast.walk(function)
    )


def sizes_of(function: ast.FunctionDef) -> frozenset[str]:
    """The names of sizes, and of what is computed from them by arithmetic alone."""
    sizes: set[str] = set()
    assigned = sorted(
        (node for node in ast.walk(function) if isinstance(node, ast.Assign)), key=lambda node: node.lineno
    )
    for node in assigned:
        if _is_of_sizes(node.value, sizes):
            sizes |= {each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return frozenset(sizes)


def _is_of_sizes(value: ast.expr, sizes: Set[str]) -> bool:
    """Whether it is one size or several, or computed from such. The last dimension's is none: it is of features."""
    match value:
        case ast.Subscript(value=ast.Attribute(attr="shape"), slice=index):
            return ast.unparse(index) != "-1"
        case ast.Call(func=ast.Attribute(attr="size"), args=given):
            return [ast.unparse(each) for each in given] != ["-1"]
        case ast.Attribute(attr="shape"):
            return True
        case ast.Name(id=name):
            return name in sizes
        case ast.BinOp(left=left, right=right):
            return _is_of_sizes(left, sizes) or _is_of_sizes(right, sizes)
        case ast.Tuple(elts=values):
            return any(_is_of_sizes(each, sizes) for each in values)
    return False
