"""Tensors of the numbers of a range that depends on sizes:

    torch.tensor(list(range(length))[::-1], device=device)

Such a list has as many numbers as a size says, and a graph in which it was made holds for that size alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

import libcst as cst

from ..facts import Ref
from .classes import Classes
from .divisions import is_size
from .movable import movable
from .segments import name
from .size_loops import sizes_of
from .trees import Tree, Trees, walk

KEYWORDS = frozenset({"device"})
"""A dtype would have to hold all of the numbers, which upstream checks."""
_NAMES = frozenset({"torch", "range", "list", "tuple"})


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A tensor that is made of a range.

    Attributes:
        bounds: What the range is given.
        backwards: Whether the numbers are in the opposite order.
        options: What else the tensor is given, by keyword.
    """

    bounds: tuple[cst.Arg, ...]
    backwards: bool
    options: tuple[cst.Arg, ...]


def find(tree: Tree) -> dict[cst.Call, Numbers]:
    """The calls in a method that make such tensors."""
    if "torch.tensor(" not in tree.text or "range(" not in tree.text or _NAMES & _bound(tree.method):
        return {}
    sizes = sizes_of(tree.node)
    calls = ((node, numbers(node)) for node in walk(tree.method) if isinstance(node, cst.Call))
    return {
        call: made for call, made in calls if made is not None and any(_is_of(each, sizes) for each in made.bounds)
    }


def methods(classes: Classes, trees: Trees, ref: Ref) -> Iterator[tuple[Tree, tuple[cst.Call, ...]]]:
    """The methods of a class with such calls."""
    for tree in movable(classes, trees, ref, "torch.tensor("):
        found = tuple(find(tree))
        if found:
            yield tree, found


def numbers(call: cst.Call) -> Numbers | None:
    """What a call makes a tensor of, if that is the numbers of a range."""
    match call:
        case cst.Call(
            func=cst.Attribute(value=cst.Name(value="torch"), attr=cst.Name(value="tensor")),
            args=[cst.Arg(keyword=None, star="", value=listed), *options],
        ) if all(each.keyword is not None and each.keyword.value in KEYWORDS for each in options):
            found = _range(listed)
            return Numbers(bounds=found[0], backwards=found[1], options=tuple(options)) if found is not None else None
    return None


def _range(listed: cst.BaseExpression) -> tuple[tuple[cst.Arg, ...], bool] | None:
    """The bounds of the range that an expression has the numbers of, and whether they are in the opposite order."""
    match listed:
        case cst.Call(func=cst.Name(value="range"), args=bounds) if not any(
            each.keyword or each.star for each in bounds
        ):
            return tuple(bounds), False
        case cst.Call(func=cst.Name(value="list" | "tuple"), args=[cst.Arg(keyword=None, star="", value=value)]):
            return _range(value)
        case cst.ListComp(
            elt=cst.Name(value=taken),
            for_in=cst.CompFor(target=cst.Name(value=given), iter=value, ifs=[], inner_for_in=None, asynchronous=None),
        ) if taken == given:
            return _range(value)
        case cst.Subscript(
            value=value, slice=[cst.SubscriptElement(slice=cst.Slice(lower=None, upper=None, step=step))]
        ) if step is not None and cst.Module(body=()).code_for_node(step) == "-1":
            found = _range(value)
            return (found[0], not found[1]) if found is not None else None
    return None


def _is_of(bound: cst.Arg, sizes: Set[str]) -> bool:
    """Whether a bound is computed from sizes."""
    parts = (each for each in walk(bound.value) if isinstance(each, cst.BaseExpression))
    return any(is_size(each) or name(each) in sizes for each in parts)


def _bound(method: cst.FunctionDef) -> set[str]:
    """The names that a method gives another meaning."""
    targets = (
        node.target if isinstance(node, cst.AssignTarget) else node.name
        for node in walk(method)
        if isinstance(node, cst.AssignTarget | cst.Param)
    )
    return {each.value for target in targets for each in walk(target) if isinstance(each, cst.Name)}
