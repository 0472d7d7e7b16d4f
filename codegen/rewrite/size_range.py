"""Rule `size-range`: a tensor of the numbers of a range is made without a list of them.

Exact: the numbers are the same, in the same order, and so are dtype and device; of no numbers the runtime's function makes what
upstream does. Outside of a graph upstream's own method runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import libcst as cst

from ..analyze import forward as declared
from ..analyze.size_ranges import Numbers, find
from ..analyze.trees import Trees
from ..facts import Pattern
from ..source import Source
from .method import commented, moved_method
from .names import Names
from .region_forward import passed_on

RANGE = "tensor_of_range"
"""The runtime's function."""
_EQUAL = cst.AssignEqual(whitespace_before=cst.SimpleWhitespace(""), whitespace_after=cst.SimpleWhitespace(""))


def size_range(
    source: Source, trees: Trees, names: Names, found: Pattern, comment: tuple[str, ...]
) -> cst.FunctionDef:
    """The rewritten method. `comment` is what stands above each statement that makes such a tensor."""
    origin, tree = source.file(found.owner.file), trees.method(found.owner, found.method)
    changed = tree.method.visit(_Ranges(find(tree), comment))
    assert isinstance(changed, cst.FunctionDef)
    return moved_method(names, origin, changed, passed_on(declared.parameters(origin, tree.node)), own=RANGE)


class _Ranges(cst.CSTTransformer):
    """Puts the runtime's function in the place of upstream's, with the range's bounds."""

    def __init__(self, found: Mapping[cst.Call, Numbers], comment: tuple[str, ...]) -> None:
        super().__init__()
        self.found = found
        self.comment = comment

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        made = self.found.get(original_node)
        if made is None:
            return updated_node
        backwards = cst.Arg(keyword=cst.Name("backwards"), equal=_EQUAL, value=cst.Name("True"))
        given = (*made.bounds, *((backwards,) if made.backwards else ()), *made.options)
        return cst.Call(
            func=cst.Name(RANGE), args=[each.with_changes(comma=cst.MaybeSentinel.DEFAULT) for each in given]
        )

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine:
        return commented(original_node, updated_node, self.found, self.comment)
