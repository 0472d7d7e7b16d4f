"""What in reach of a forward breaks a graph: reads of tensor values on the host, and shapes that depend on values.

The reach of a class is its forward, the methods of its own that the forward calls, the functions of modeling files that they
call, and the same for every child it makes.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from ..facts import Forward, Hazard, HazardKind, Ref, Span
from ..source import Source
from .classes import Classes
from .composition import children, inherited_init
from .prologue import helper_chain
from .trees import Trees

HOST_READS = {"item", "tolist", "numpy", "cpu"}
DATA_SHAPES = {"nonzero", "unique", "unique_consecutive", "masked_select"}


def reachable(classes: Classes, trees: Trees, root: Ref) -> tuple[Ref, ...]:
    """`root` and every class that it makes, directly or through its children, in the order of discovery."""
    found: dict[Ref, None] = {}
    pending = [root]
    while pending:
        ref = pending.pop(0)
        if ref in found or classes.node(ref) is None:
            continue
        found[ref] = None
        pending += [child.target for child in children(classes, trees, ref) if child.target is not None]
        base = inherited_init(classes, ref)
        pending += [base] if base is not None else []
    return tuple(found)


def hazards(classes: Classes, ref: Ref) -> tuple[Hazard, ...]:
    """The hazards in the forward of one class and in what it calls of its own file."""
    found = [hazard for owner, function in _called(classes, ref) for hazard in _in_function(ref, owner, function)]
    return tuple(dict.fromkeys(found))


def helper_hazards(source: Source, ref: Ref, forward: Forward | None) -> tuple[Hazard, ...]:
    """The hazards in the helpers of a forward's prologue calls, which hoisting takes out of the graph."""
    found: dict[Hazard, None] = {}
    for call in forward.prologue if forward is not None else ():
        for helper in helper_chain(source, call.helper):
            node = source.definition(helper).node
            if isinstance(node, ast.FunctionDef):
                for hazard in _in_function(ref, helper, node):
                    found[dataclasses.replace(hazard, resolved_by="prologue")] = None
    return tuple(found)


def _called(classes: Classes, ref: Ref) -> Iterator[tuple[Ref, ast.FunctionDef]]:
    """The forward, and the methods and functions of modeling files that it calls."""
    seen: set[tuple[str, str]] = set()
    pending: list[tuple[Ref, ast.FunctionDef]] = []
    if (forward := classes.method(ref, "forward")) is not None:
        pending.append(forward)
    while pending:
        owner, function = pending.pop(0)
        if (owner.file, f"{owner.name}.{function.name}") in seen:
            continue
        seen.add((owner.file, f"{owner.name}.{function.name}"))
        yield owner, function
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            match node.func:
                case ast.Attribute(value=ast.Name(id="self"), attr=name):
                    if (method := classes.method(ref, name)) is not None:
                        pending.append(method)
                case ast.Name(id=name):
                    helper = classes.source.resolve(name, classes.source.file(owner.file))
                    if helper is not None and helper.file.startswith("transformers/models/"):
                        definition = classes.source.definition(helper)
                        if isinstance(definition.node, ast.FunctionDef):
                            pending.append((helper, definition.node))


def _in_function(ref: Ref, owner: Ref, function: ast.FunctionDef) -> Iterator[Hazard]:
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name = node.func.attr
        span = Span(file=owner.file, line=node.lineno, column=node.col_offset)
        if name in HOST_READS and not node.args and not node.keywords:
            message = f"`{ast.unparse(node)}` reads a tensor's values on the host"
            yield Hazard(kind=HazardKind.HOST_READ, message=message, span=span, owner=ref)
        elif name in DATA_SHAPES or (name == "where" and len(node.args) == 1 and not node.keywords):
            message = f"`{ast.unparse(node)}` has a shape that depends on values"
            yield Hazard(kind=HazardKind.DATA_SHAPE, message=message, span=span, owner=ref)
        elif name == "repeat_interleave" and not any(keyword.arg == "output_size" for keyword in node.keywords):
            if (
                len(node.args) > 1
                and not isinstance(node.args[1], ast.Constant)
                and ast.unparse(node.func.value) == "torch"
            ):
                message = f"`{ast.unparse(node)}` has a shape that depends on values"
                yield Hazard(kind=HazardKind.DATA_SHAPE, message=message, span=span, owner=ref)
