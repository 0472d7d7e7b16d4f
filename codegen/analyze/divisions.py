"""Sizes divided by a function of tensors: `torch.div(x.size(1), width, rounding_mode="trunc")`.

In eager that is a tensor, which a view takes for a size. In a graph nothing is known of it, though it is but the quotient of two
sizes.
"""

from __future__ import annotations

import libcst as cst

from .segments import assign, name
from .trees import Tree, walk

ROUNDING = ("trunc", "floor")


def find(tree: Tree) -> tuple[cst.Call, ...]:
    """The calls in a method that divide a size, and whose results are used as sizes."""
    if "torch.div(" not in tree.text:
        return ()
    sizes = _sizes(tree.method)
    found = tuple(node for node in walk(tree.method) if isinstance(node, cst.Call) and _divides(node, sizes))
    quotients = {target for node in walk(tree.method) for target, value in [assign(node)] if _holds(value, found)}
    owners = {name(node.value) for node in walk(tree.method) if isinstance(node, cst.Attribute | cst.Subscript)}
    return found if not quotients & owners else ()


def _holds(value: cst.BaseExpression | None, found: tuple[cst.Call, ...]) -> bool:
    """Whether it is one of the divisions, or computed from one."""
    if isinstance(value, cst.BinaryOperation):
        return _holds(value.left, found) or _holds(value.right, found)
    return isinstance(value, cst.Call) and value in found


def _divides(call: cst.Call, sizes: set[str]) -> bool:
    match call:
        case cst.Call(
            func=cst.Attribute(value=cst.Name(value="torch"), attr=cst.Name(value="div")),
            args=[
                cst.Arg(keyword=None, star="", value=dividend),
                cst.Arg(keyword=None, star=""),
                cst.Arg(keyword=cst.Name(value="rounding_mode"), value=cst.SimpleString() as rounding),
            ],
        ):
            return rounding.evaluated_value in ROUNDING and (is_size(dividend) or name(dividend) in sizes)
    return False


def is_size(value: cst.BaseExpression) -> bool:
    """Whether it is `x.size(…)` or `x.shape[…]`."""
    match value:
        case cst.Call(func=cst.Attribute(attr=cst.Name(value="size")), args=[_]):
            return True
        case cst.Subscript(
            value=cst.Attribute(attr=cst.Name(value="shape")), slice=[cst.SubscriptElement(slice=cst.Index())]
        ):
            return True
    return False


def _sizes(method: cst.FunctionDef) -> set[str]:
    """The names that are bound once, by unpacking `x.size()` or `x.shape`."""
    unpacked: list[str] = []
    bound = [each.name.value for each in walk(method) if isinstance(each, cst.Param)]
    for node in walk(method):
        match node:
            case cst.Assign(
                targets=[cst.AssignTarget(target=cst.Tuple(elements=elements))],
                value=cst.Call(func=cst.Attribute(attr=cst.Name(value="size")), args=[])
                | cst.Attribute(attr=cst.Name(value="shape")),
            ):
                unpacked += [name(each.value) for each in elements]
        if isinstance(node, cst.AssignTarget | cst.AugAssign | cst.AnnAssign | cst.For | cst.CompFor | cst.NamedExpr):
            bound += [each.value for each in walk(node.target) if isinstance(each, cst.Name)]
    return {each for each in unpacked if each and bound.count(each) == 1}
