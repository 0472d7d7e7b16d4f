"""When a statement runs: what the tests around it say of how serious a hazard inside is.

A statement that never runs inside a graph, or in one use of several only, can't break every graph.
"""

from __future__ import annotations

import ast

from ..facts import HazardLevel
from .kinds import CACHES, dotted

ERROR, WARNING, NOTE = HazardLevel.ERROR, HazardLevel.WARNING, HazardLevel.NOTE

COMPILING = {"is_torchdynamo_compiling", "is_compiling", "is_dynamo_compiling", "is_tracing", "is_torchdynamo_tracing"}
"""True inside a graph that Dynamo captures."""
OTHER_TRACING = {"is_jit_tracing", "is_exporting", "is_torchdynamo_exporting", "is_scripting"}
"""False there, `torch.jit.is_tracing()` included: what it guards runs inside the graph all the same."""
FLAGS = {"training", "output_attentions", "output_hidden_states", "output_router_logits", "gradient_checkpointing"}
"""Uses that are off by default."""
ON = {"use_cache"}
"""What is on by default."""
USUAL = {"attention_mask", "position_ids", "input_ids", "inputs_embeds", "encoder_hidden_states"} | CACHES
"""Optional arguments that callers give nevertheless."""


def lower(*levels: HazardLevel) -> HazardLevel:
    return min(levels, key=lambda level: level.rank)


def cap_when(test: ast.expr, truth: bool, optional: frozenset[str]) -> HazardLevel:
    """The most that a hazard can be where `test` came out as `truth`. `optional` are arguments that are None by default."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return cap_when(operand, not truth, optional)
        case ast.BoolOp(op=op, values=values):
            if isinstance(op, ast.And) is truth:
                return lower(*(cap_when(value, truth, optional) for value in values))
            return ERROR
        case ast.Call(func=func):
            return _call_cap(dotted(func), truth)
        case ast.Attribute(attr=name) | ast.Name(id=name) if name in ON:
            return ERROR if truth else WARNING
        case ast.Name(id=name) if name in optional and name not in USUAL:
            return WARNING if truth else ERROR
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return WARNING if truth and name in FLAGS else ERROR
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _compare_cap(left, op, right, truth, optional)
    return ERROR


def _call_cap(name: str, truth: bool) -> HazardLevel:
    last = name.rpartition(".")[2]
    if last in OTHER_TRACING or name == "torch.jit.is_tracing":
        return NOTE if truth else ERROR
    if last in COMPILING:
        return ERROR if truth else NOTE
    return WARNING if truth and last == "is_flash_attention_requested" else ERROR


def _compare_cap(left: ast.expr, op: ast.cmpop, right: ast.expr, truth: bool, optional: frozenset[str]) -> HazardLevel:
    match left, op, right:
        case ast.Name(id=name), ast.Is() | ast.IsNot(), ast.Constant(value=None):
            given = isinstance(op, ast.IsNot) is truth
            return WARNING if given and name in optional and name not in USUAL else ERROR
        case _, ast.Eq() | ast.NotEq(), ast.Constant(value=str(text)) if "flash" in text:
            return WARNING if isinstance(op, ast.Eq) is truth else ERROR
        case _, ast.Eq() | ast.NotEq(), ast.Constant(value="default"):
            return WARNING if isinstance(op, ast.NotEq) is truth else ERROR
        case _, ast.Eq() | ast.NotEq(), ast.Attribute(attr="float16" | "half"):
            return WARNING if isinstance(op, ast.Eq) is truth else ERROR
    return ERROR


def ends(body: list[ast.stmt]) -> bool:
    """Whether what follows an `if` isn't reached through this body of it."""
    return bool(body) and isinstance(body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)


def optional_arguments(function: ast.FunctionDef) -> frozenset[str]:
    """The arguments that are None where the caller leaves them out."""
    pairs = defaults(function.args)
    return frozenset(a.arg for a, d in pairs if isinstance(d, ast.Constant) and d.value is None)


def defaults(arguments: ast.arguments) -> list[tuple[ast.arg, ast.expr]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(positional), reversed(arguments.defaults), strict=False)]
    return pairs + [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
