"""Branches that only a graph takes, where eager computes the same in another way:

    if use_associative_scan and is_torchdynamo_compiling():
        _, all_states = associative_scan(combine_fn, (discrete_A, deltaB_u), dim=2)
        ssm_state = all_states[:, :, -1]
    else:
        for index in range(seq_len):
            ssm_state = discrete_A[:, :, index] * ssm_state + deltaB_u[:, :, index]

The two differ by rounding, so a graph that went through such lines isn't what upstream's eager code computes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from .conditions import COMPILING
from .kinds import dotted

_Body = Sequence[ast.stmt]


def asks(text: str) -> bool:
    """Whether a file's code asks at all if it is traced."""
    return any(f"{name}(" in text for name in COMPILING)


def find(function: ast.FunctionDef) -> tuple[range, ...]:
    """The lines of every such branch of a function."""
    return tuple(range(body[0].lineno, _end(body) + 1) for body in _sides(function.body))


def _sides(body: _Body) -> Iterator[_Body]:
    for position, statement in enumerate(body):
        if isinstance(statement, ast.If):
            # Where a branch returns and there is no other, what follows is the other.
            otherwise = statement.orelse or (body[position + 1 :] if _returns(statement.body) else [])
            for side, other, truth in ((statement.body, otherwise, True), (otherwise, statement.body, False)):
                if side and other and _only_in_graphs(statement.test, truth) and _compute_the_same(side, other):
                    yield side
        for name in ("body", "orelse", "finalbody"):
            inner = getattr(statement, name, None)
            if inner and not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                yield from _sides(inner)


def _only_in_graphs(test: ast.expr, truth: bool) -> bool:
    """Whether a test comes out as `truth` only while Dynamo traces."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _only_in_graphs(operand, not truth)
        case ast.BoolOp(op=op, values=values):
            found = [_only_in_graphs(value, truth) for value in values]
            return any(found) if isinstance(op, ast.And) is truth else all(found)
        case ast.Call(func=func):
            return truth and dotted(func).rpartition(".")[2] in COMPILING
    return False


def _compute_the_same(side: _Body, other: _Body) -> bool:
    """Whether both give a name a value, or both return: else one of them only checks, warns or counts."""
    return bool(_set(side) & _set(other)) or (_returns(side) and _returns(other))


def _set(body: _Body) -> frozenset[str]:
    nodes = (node for statement in body for node in ast.walk(statement))
    return frozenset(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def _returns(body: _Body) -> bool:
    return bool(body) and isinstance(body[-1], ast.Return) and body[-1].value is not None


def _end(body: _Body) -> int:
    return body[-1].end_lineno or body[-1].lineno
