"""Rule `size-division`: a size that upstream divides by a function of tensors is divided as a number in a graph.

Exact: both are whole, and neither is negative. Outside of a graph the runtime's function is upstream's.
"""

from __future__ import annotations

import libcst as cst

from ..analyze.divisions import find
from ..analyze.trees import Trees
from ..facts import Pattern
from ..source import Source, SourceFile
from .method import commented, without_docstring
from .names import Move, Names

DIVIDE = "divide_size"
"""The runtime's function."""


def size_division(
    source: Source, trees: Trees, names: Names, found: Pattern, comment: tuple[str, ...]
) -> cst.FunctionDef:
    """The rewritten method. `comment` is what stands above each division."""
    tree = trees.method(found.owner, found.method)
    moved = tree.method.visit(_Divide(names, source.file(found.owner.file), tree.method, find(tree), comment))
    assert isinstance(moved, cst.FunctionDef)
    block = cst.ensure_type(moved.body, cst.IndentedBlock)
    return moved.with_changes(body=block.with_changes(body=without_docstring(block.body)))


class _Divide(Move):
    """Puts the runtime's function in the place of upstream's."""

    def __init__(
        self,
        names: Names,
        origin: SourceFile,
        function: cst.FunctionDef,
        found: tuple[cst.Call, ...],
        comment: tuple[str, ...],
    ) -> None:
        super().__init__(names, origin, function)
        self.found = found
        self.comment = comment

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        return updated_node.with_changes(func=cst.Name(DIVIDE)) if original_node in self.found else updated_node

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine:
        return commented(original_node, updated_node, self.found, self.comment)
