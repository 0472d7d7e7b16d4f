"""Rule `late-message`: the message of a check is put together where the check fails, and never in a graph.

Exact: upstream's check takes a function as well, and leaves out either in a graph. Outside of one upstream's own method runs.
"""

from __future__ import annotations

import libcst as cst

from ..analyze import forward as declared
from ..analyze.messages import find
from ..analyze.trees import Trees
from ..facts import Pattern
from ..source import Source
from .method import commented, moved_method
from .names import Names
from .region_forward import passed_on


def late_message(
    source: Source, trees: Trees, names: Names, found: Pattern, comment: tuple[str, ...]
) -> cst.FunctionDef:
    """The rewritten method. `comment` is what stands above each check."""
    origin, tree = source.file(found.owner.file), trees.method(found.owner, found.method)
    changed = tree.method.visit(_Late(find(tree), comment))
    assert isinstance(changed, cst.FunctionDef)
    return moved_method(names, origin, changed, passed_on(declared.parameters(origin, tree.node)))


class _Late(cst.CSTTransformer):
    """Puts a function that returns the message in its place."""

    def __init__(self, messages: tuple[cst.BaseExpression, ...], comment: tuple[str, ...]) -> None:
        super().__init__()
        self.messages = messages
        self.comment = comment

    def leave_Arg(self, original_node: cst.Arg, updated_node: cst.Arg) -> cst.Arg:
        if original_node.value not in self.messages:
            return updated_node
        return updated_node.with_changes(value=cst.Lambda(params=cst.Parameters(), body=updated_node.value))

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine:
        return commented(original_node, updated_node, self.messages, self.comment)
