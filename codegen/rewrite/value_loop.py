"""Rule `value-loop`: a method that loops over values read on the host is one operator of a graph.

Exact: the operator runs upstream's method, forwards and, for its gradients, once more backwards. Outside of a graph upstream's
method runs as well.
"""

from __future__ import annotations

import libcst as cst

from ..analyze.loops import find
from ..analyze.trees import Trees
from ..facts import Pattern
from ..source import Source
from .method import comment_lines
from .names import Move, Names

LOOP = "loop_over_values"
"""The runtime's function."""


def value_loop(
    source: Source, trees: Trees, names: Names, found: Pattern, comment: tuple[str, ...]
) -> cst.FunctionDef:
    """The rewritten method. `comment` is what stands above the operator."""
    tree, origin = trees.method(found.owner, found.method), source.file(found.owner.file)
    loop = find(tree)
    assert loop is not None, f"{found.owner} lost its loop between analysis and rewriting"
    none = cst.Name("None")
    given = ([] if loop.is_static else [none]) + [cst.Name(each) for each in loop.parameters]
    size = cst.Tuple([cst.Element(none if each is None else each) for each in loop.size])
    call = cst.Call(
        func=cst.Name(LOOP),
        args=[
            cst.Arg(cst.SimpleString(f'"{origin.module}:{found.owner.name}.{found.method}"')),
            *map(cst.Arg, given),
            cst.Arg(size, keyword=cst.Name("size")),
        ],
    )
    statement = cst.SimpleStatementLine(body=[cst.Return(call)], leading_lines=comment_lines(comment))
    changed = tree.method.with_changes(body=cst.IndentedBlock([*loop.before, statement]))
    moved = changed.visit(_Method(names, origin, changed))
    assert isinstance(moved, cst.FunctionDef)
    return moved


class _Method(Move):
    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        return updated_node if original_node.value == LOOP else super().leave_Name(original_node, updated_node)
