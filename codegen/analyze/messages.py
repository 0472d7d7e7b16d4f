"""Checks whose message has sizes in it:

    torch_compilable_check(length % 4 == 0, f"a length of {length} is no multiple of 4")

Upstream's function leaves the message out of a graph. But it is put together before the call, and a graph in which a size was made
text holds for that size alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from ..facts import Ref
from .classes import Classes
from .movable import movable
from .trees import Tree, Trees, walk

CHECK = "torch_compilable_check"
"""Upstream's function (transformers/utils/import_utils.py). It takes a message, or a function that returns one."""
_MESSAGE = "msg"
_OF_MODULE = re.compile(r"self(\.\w+)+")


def find(tree: Tree) -> tuple[cst.BaseExpression, ...]:
    """The messages of a method's checks that are put together from other values than attributes of the module."""
    if f"{CHECK}(" not in tree.text:
        return ()
    return tuple(
        message
        for node in walk(tree.method)
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value == CHECK
        for message in _messages(node)
    )


def methods(classes: Classes, trees: Trees, ref: Ref) -> Iterator[tuple[Tree, tuple[cst.BaseExpression, ...]]]:
    """The methods of a class with such messages."""
    for tree in movable(classes, trees, ref, f"{CHECK}("):
        found = find(tree)
        if found:
            yield tree, found


def _messages(call: cst.Call) -> Iterator[cst.BaseExpression]:
    for index, argument in enumerate(call.args):
        is_message = argument.keyword.value == _MESSAGE if argument.keyword is not None else index == 1
        if is_message and not argument.star and _reads_values(argument.value):
            yield argument.value


def _reads_values(message: cst.BaseExpression) -> bool:
    """Whether it is an f-string with anything but attributes of the module in it."""
    if not isinstance(message, cst.FormattedString | cst.ConcatenatedString):
        return False
    parts = [each.expression for each in walk(message) if isinstance(each, cst.FormattedStringExpression)]
    return any(not _OF_MODULE.fullmatch(cst.Module(body=()).code_for_node(each)) for each in parts)
