"""Rule `known-truth`: whether an argument holds anything is known in a graph of a region that was asked before.

Exact: the region hands on None where it doesn't, and no code that the argument comes by reads it otherwise. Outside of such a graph
the runtime's function is upstream's `any`.
"""

from __future__ import annotations

import libcst as cst

from ..analyze.trees import Trees, walk
from ..analyze.truths import find
from ..facts import Pattern
from ..source import Source, SourceFile
from .method import comment_lines, without_docstring
from .names import Move, Names

HOLDS = "holds_any"
"""The runtime's function."""


def known_truth(
    source: Source, trees: Trees, names: Names, found: Pattern, comment: tuple[str, ...]
) -> cst.FunctionDef:
    """The rewritten method. `comment` is what stands above each branch."""
    tree = trees.method(found.owner, found.method)
    asked = {call: argument for argument, call in find(tree).items()}
    moved = tree.method.visit(_Ask(names, source.file(found.owner.file), tree.method, asked, comment))
    assert isinstance(moved, cst.FunctionDef)
    block = cst.ensure_type(moved.body, cst.IndentedBlock)
    return moved.with_changes(body=block.with_changes(body=without_docstring(block.body)))


class _Ask(Move):
    """Puts the runtime's function in the place of upstream's."""

    def __init__(
        self,
        names: Names,
        origin: SourceFile,
        function: cst.FunctionDef,
        asked: dict[cst.Call, str],
        comment: tuple[str, ...],
    ) -> None:
        super().__init__(names, origin, function)
        self.asked = asked
        self.comment = comment

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        argument = self.asked.get(original_node)
        if argument is None:
            return updated_node
        return cst.Call(
            func=cst.Name(HOLDS), args=[cst.Arg(cst.Name(argument)), cst.Arg(cst.SimpleString(f'"{argument}"'))]
        )

    def leave_If(self, original_node: cst.If, updated_node: cst.If) -> cst.If:
        if not any(node in self.asked for node in walk(original_node.test) if isinstance(node, cst.Call)):
            return updated_node
        return updated_node.with_changes(leading_lines=[*updated_node.leading_lines, *comment_lines(self.comment)])
