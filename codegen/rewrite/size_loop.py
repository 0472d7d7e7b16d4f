"""Rule `size-loop`: a function that loops over a size, or computes otherwise in a graph, is called as one operator of a graph.

Exact: the operator runs upstream's function, forwards and, for its gradients, once more backwards. Where it can't (the function
changes an argument, or its results' sizes are none that it was given), the function is traced as before. Outside of a graph
upstream's method runs as well.
"""

from __future__ import annotations

import libcst as cst

from ..analyze import forward as declared
from ..analyze.classes import Classes
from ..analyze.size_loops import HOOKS, Looping, find
from ..analyze.trees import Trees
from ..facts import Ref
from ..source import Source
from .method import comment_lines, moved_method
from .names import Names
from .region_forward import passed_on

SIZE_LOOP = "loop_over_sizes"
"""The runtime's function."""


def size_loop(
    source: Source, trees: Trees, names: Names, ref: Ref, method: str, comment: tuple[str, ...]
) -> cst.FunctionDef:
    """The rewritten method. `comment` is what stands above each statement with such a call."""
    origin, tree = source.file(ref.file), trees.method(ref, method)
    calls = next(each for each in find(Classes(source), ref) if each.method == method)
    changed = tree.method.visit(_Calls(dict(calls.found), comment))
    assert isinstance(changed, cst.FunctionDef)
    passed = passed_on(declared.parameters(origin, tree.node))
    return moved_method(names, origin, changed, passed, own=SIZE_LOOP, keeping=HOOKS)


class _Calls(cst.CSTTransformer):
    """Hands such a function to the runtime's, which calls it."""

    def __init__(self, found: dict[str, Looping], comment: tuple[str, ...]) -> None:
        super().__init__()
        self.found = found
        self.comment = comment
        self._is_changed = False

    def visit_SimpleStatementLine(self, node: cst.SimpleStatementLine) -> None:
        self._is_changed = False

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        looping = self.found.get(cst.Module(body=()).code_for_node(original_node.func))
        if looping is None:
            return updated_node
        self._is_changed = True
        given = (cst.SimpleString(f'"{looping.name}"'), original_node.func, cst.Name(str(looping.differs)))
        return updated_node.with_changes(func=cst.Name(SIZE_LOOP), args=[*map(cst.Arg, given), *updated_node.args])

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine:
        if not self._is_changed:
            return updated_node
        self._is_changed = False
        return updated_node.with_changes(leading_lines=[*updated_node.leading_lines, *comment_lines(self.comment)])
