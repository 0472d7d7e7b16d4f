"""Rule `grouped-attention`: inside a graph, too, one new token attends with its grouped query heads packed, as it does in eager.

Upstream's SDPA function leaves that branch out of graphs (`codegen.analyze.grouped`); the runtime's takes it there. Outside of a
graph upstream's own method runs.
"""

from __future__ import annotations

import libcst as cst

from ..analyze.grouped import FUNCTIONS
from ..analyze.trees import Trees
from ..facts import InterfaceLookup
from ..source import Source
from .method import comment_lines, moved_method
from .names import Names

GROUPED_ATTENTION = "grouped_attention"
"""The runtime's function from an attention function to the one for graphs."""


def grouped_attention(
    source: Source, trees: Trees, names: Names, found: InterfaceLookup, passed: str, comment: tuple[str, ...]
) -> cst.FunctionDef:
    """The rewritten method. `passed` are the arguments that hand its parameters on, `comment` what stands above the lookup."""
    function = trees.method(found.owner, found.method).method
    wrapped = function.visit(_Wrap(comment))
    assert isinstance(wrapped, cst.FunctionDef)
    return moved_method(names, source.file(found.owner.file), wrapped, passed, own=GROUPED_ATTENTION)


class _Wrap(cst.CSTTransformer):
    """Puts the runtime's function around every lookup."""

    def __init__(self, comment: tuple[str, ...]) -> None:
        super().__init__()
        self.comment = comment

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine:
        statement = updated_node.body[0]
        if not isinstance(statement, cst.Assign | cst.AnnAssign) or not _is_lookup(statement.value):
            return updated_node
        assert statement.value is not None
        call = cst.Call(func=cst.Name(GROUPED_ATTENTION), args=[cst.Arg(statement.value)])
        return updated_node.with_changes(
            body=[statement.with_changes(value=call), *updated_node.body[1:]],
            leading_lines=[*updated_node.leading_lines, *comment_lines(self.comment)],
        )


def _is_lookup(value: cst.BaseExpression | None) -> bool:
    match value:
        case cst.Call(func=cst.Attribute(value=cst.Name(value=name), attr=cst.Name(value="get_interface"))):
            return name == FUNCTIONS
        case cst.Subscript(value=cst.Name(value=name)):
            return name == FUNCTIONS
    return False
