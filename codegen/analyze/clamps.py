"""Values that overflowed, put back into a dtype's range by a branch on them:

    if hidden_states.dtype == torch.float16 and not torch.isfinite(hidden_states).all():
        clamp_value = torch.finfo(hidden_states.dtype).max - 1000
        hidden_states = torch.clamp(hidden_states, min=-clamp_value, max=clamp_value)

In a graph the same is a choice between two tensors, which takes no branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst

from .segments import assign, name
from .trees import Tree, walk

CHECKS = ("isfinite", "isinf", "isnan")
_REDUCTIONS = ("all", "any")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """One such branch.

    Attributes:
        branch: The statement.
        known: What is asked before of what a graph knows, a dtype; None where nothing is.
        check: The tensor of one bool that the branch asks.
        is_negated: It is taken where `check` is false.
        before: The statements before the last: they compute the bounds.
        target: The name that is clamped.
        clamped: The call that clamps it.
    """

    branch: cst.If
    known: cst.BaseExpression | None
    check: cst.Call
    is_negated: bool
    before: Sequence[cst.SimpleStatementLine]
    target: str
    clamped: cst.Call


def find(tree: Tree) -> tuple[Clamp, ...]:
    """Every such branch of a method, none where what it computes on the way is used outside of them."""
    if not any(f".{check}(" in tree.text for check in CHECKS):
        return ()
    branches = (each for each in walk(tree.method) if isinstance(each, cst.If))
    found = tuple(clamp for branch in branches if (clamp := _clamp(branch)) is not None)
    inside = {id(each) for clamp in found for each in walk(clamp.branch)}
    outside = {each.value for each in walk(tree.method) if isinstance(each, cst.Name) and id(each) not in inside}
    bounds = {assign(statement)[0] for clamp in found for statement in clamp.before}
    return found if not bounds & outside else ()


def _clamp(branch: cst.If) -> Clamp | None:
    if branch.orelse is not None or not isinstance(branch.body, cst.IndentedBlock):
        return None
    known, asked = None, branch.test
    if isinstance(asked, cst.BooleanOperation) and isinstance(asked.operator, cst.And):
        known, asked = asked.left, asked.right
        if any(isinstance(each, cst.Call) for each in walk(known)):
            return None
    is_negated = isinstance(asked, cst.UnaryOperation) and isinstance(asked.operator, cst.Not)
    check = asked.expression if isinstance(asked, cst.UnaryOperation) and is_negated else asked
    statements = [each for each in branch.body.body if isinstance(each, cst.SimpleStatementLine)]
    if not isinstance(check, cst.Call) or not _is_check(check) or len(statements) < len(branch.body.body):
        return None
    *before, last = statements
    target, value = assign(last)
    if not _is_clamp(value, target) or any(assign(each)[0] in ("", target) for each in before):
        return None
    assert isinstance(value, cst.Call)
    return Clamp(
        branch=branch,
        known=known,
        check=check,
        is_negated=is_negated,
        before=before,
        target=target,
        clamped=value,
    )


def _is_check(call: cst.Call) -> bool:
    """`torch.isfinite(name).all()` and the like."""
    match call:
        case cst.Call(
            func=cst.Attribute(
                value=cst.Call(
                    func=cst.Attribute(value=cst.Name(value="torch"), attr=cst.Name(value=check)),
                    args=[cst.Arg(value=cst.Name(), keyword=None)],
                ),
                attr=cst.Name(value=reduction),
            ),
            args=[],
        ):
            return check in CHECKS and reduction in _REDUCTIONS
    return False


def _is_clamp(value: cst.BaseExpression | None, target: str) -> bool:
    """`torch.clamp(target, …)`."""
    match value:
        case cst.Call(
            func=cst.Attribute(value=cst.Name(value="torch"), attr=cst.Name(value="clamp")),
            args=[cst.Arg(value=first), *_],
        ):
            return name(first) == target != ""
    return False
