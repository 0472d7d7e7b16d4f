"""What in reach of a class's forward breaks a graph, recompiles, or changes results.

The reach of a class is its forward and what that calls; the children that it makes answer for theirs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from ..facts import Forward, Hazard, HazardKind, PrologueCall, Ref, Span
from .callgraph import Reached, call_graph, decorators
from .classes import Classes
from .composition import children, inherited_init
from .conditions import NOTE, WARNING, lower
from .trees import Trees

EXPERTS, EXPERTS_RULE = "use_experts_implementation", "experts implementation"
ROPE, ROPE_RULE = "dynamic_rope_update", "rope check"
"""Decorators, and what resolves the hazards under them: Transformers' default experts don't run the decorated forward, and a
region runs uncompiled where the config asks for a rope that branches on positions."""

NUMBERED = ("_idx", "_index", "_id", "_number")


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


def hazards(classes: Classes, ref: Ref, forward: Forward | None) -> tuple[Hazard, ...]:
    """The hazards in reach of the forward of one class, the most serious of each place.

    Those that only its prologue calls reach are resolved by hoisting these.
    """
    if forward is None:
        return ()
    hoisted = hoisted_lines(forward.prologue)
    found: dict[tuple[HazardKind, Span, str | None], Hazard] = {}
    for reached in call_graph(classes).reach(ref, hoisted):
        for hazard in _of(classes, ref, reached, hoisted):
            key = (hazard.kind, hazard.span, hazard.resolved_by)
            if key not in found or found[key].level.rank < hazard.level.rank:
                found[key] = hazard
    return (*found.values(), *_in_graphs(ref, forward), *_layer_number(classes, ref))


def hoisted_lines(calls: Iterable[PrologueCall]) -> frozenset[int]:
    """The lines of a forward that its prologue calls stand in."""
    lines = (range(call.first_line, call.last_line + 1) for call in calls if not call.within)
    return frozenset(line for each in lines for line in each)


def _of(classes: Classes, ref: Ref, reached: Reached, hoisted: frozenset[int]) -> Iterator[Hazard]:
    """The hazards of one function, as they matter to the class."""
    owner, function, cap, rule = reached.owner, reached.function, reached.cap, None
    if reached.line is not None:
        rule = "prologue"
    node = classes.node(owner) if function.name == "forward" else None
    if node is not None and EXPERTS in decorators(node):
        rule, cap = EXPERTS_RULE, lower(cap, WARNING)
    graph = call_graph(classes)
    scanned = graph.scan(owner, function)
    handed_on = [found for child, found in scanned.handed_on if graph.attends(ref, child)]
    for found in (*scanned.hazards, *handed_on):
        is_hoisted = owner == ref and function.name == "forward" and found.line in hoisted
        yield Hazard(
            kind=found.kind,
            message=found.message,
            span=Span(file=owner.file, line=found.line, column=found.column),
            owner=ref,
            level=lower(found.level, cap),
            resolved_by="prologue" if is_hoisted else rule,
        )
    if ROPE in decorators(function):
        yield Hazard(
            kind=HazardKind.DYNAMIC_ROPE,
            message="with rope_type 'dynamic' or 'longrope' the frequencies are changed by the positions of each call",
            span=Span(file=owner.file, line=function.lineno, column=function.col_offset),
            owner=ref,
            level=WARNING,
            resolved_by=ROPE_RULE,
        )


def _in_graphs(ref: Ref, forward: Forward) -> Iterator[Hazard]:
    for branch in forward.graph_only:
        yield Hazard(
            kind=HazardKind.GRAPH_ONLY,
            message=f"`{branch.method}` computes this in another way in a graph than in eager: the results differ by rounding",
            span=branch.span,
            owner=ref,
            level=WARNING,
        )


def _layer_number(classes: Classes, ref: Ref) -> Iterator[Hazard]:
    """The first read of a number that `__init__` was given and that differs from layer to layer."""
    init, forward = classes.method(ref, "__init__"), classes.method(ref, "forward")
    if init is None or forward is None:
        return
    numbers = {argument.arg for argument in init[1].args.args if argument.arg.endswith(NUMBERED)}
    kept = {
        target.attr
        for node in (ast.walk(init[1]) if numbers else ())
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in numbers
        for target in node.targets
        if isinstance(target, ast.Attribute)
    }
    for node in ast.walk(forward[1]) if kept else ():
        if isinstance(node, ast.Attribute) and node.attr in kept and isinstance(node.value, ast.Name):
            if node.value.id == "self":
                yield Hazard(
                    kind=HazardKind.LAYER_NUMBER,
                    message=f"`{ast.unparse(node)}` differs from layer to layer: a graph for layers is compiled for each",
                    span=Span(file=forward[0].file, line=node.lineno, column=node.col_offset),
                    owner=ref,
                    level=NOTE,
                )
                return
