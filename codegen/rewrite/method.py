"""What every rewritten method has: upstream's own outside of a graph, and a body in the generated module's names."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence, Set

import libcst as cst

from ..analyze.callgraph import RENAMING
from ..analyze.trees import walk
from ..source import SourceFile
from .names import Move, Names


def moved_method(
    names: Names,
    origin: SourceFile,
    function: cst.FunctionDef,
    passed: str,
    *,
    own: str = "",
    unless: str = "",
    keeping: Set[str] = frozenset(),
) -> cst.FunctionDef:
    """A changed method of upstream's for a subclass.

    Args:
        passed: The arguments that hand its parameters on to upstream's method.
        own: A name of the runtime that the changed body uses, if it uses any.
        unless: A further condition on which upstream's method runs inside a graph too, ` or …`.
        keeping: Decorators that come along, besides those that rename.
    """
    # Without the others first: what they are named stays where it is.
    kept = [each for each in function.decorators if _is_one_of(each, RENAMING | keeping)]
    moved = function.with_changes(decorators=kept).visit(_Method(names, origin, function, own))
    assert isinstance(moved, cst.FunctionDef)
    name = function.name.value
    guard = cst.parse_statement(
        f"if not torch.compiler.is_compiling(){unless}:\n    return super().{name}({passed})\n"
    )
    block = cst.ensure_type(moved.body, cst.IndentedBlock)
    first, *rest = without_docstring(block.body)
    if isinstance(first, cst.SimpleStatementLine):
        first = first.with_changes(leading_lines=[cst.EmptyLine(indent=False), *first.leading_lines])
    return moved.with_changes(body=block.with_changes(body=[guard, first, *rest]))


def comment_lines(lines: Iterable[str]) -> list[cst.EmptyLine]:
    return [cst.EmptyLine(comment=cst.Comment(f"# {line}")) for line in lines]


def commented(
    original: cst.SimpleStatementLine,
    updated: cst.SimpleStatementLine,
    found: Container[cst.CSTNode],
    comment: tuple[str, ...],
) -> cst.SimpleStatementLine:
    """A statement with a comment above it, where one of the nodes that were found is in upstream's."""
    if not any(node in found for node in walk(original)):
        return updated
    return updated.with_changes(leading_lines=[*updated.leading_lines, *comment_lines(comment)])


class _Method(Move):
    def __init__(self, names: Names, origin: SourceFile, function: cst.FunctionDef, own: str) -> None:
        super().__init__(names, origin, function)
        self.own = own

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        return updated_node if original_node.value == self.own else super().leave_Name(original_node, updated_node)


def _is_one_of(decorator: cst.Decorator, wanted: Set[str]) -> bool:
    match decorator.decorator:
        case cst.Call(func=cst.Name(value=name) | cst.Attribute(attr=cst.Name(value=name))):
            return name in wanted
    return False


def without_docstring(body: Sequence[cst.BaseStatement]) -> list[cst.BaseStatement]:
    first = body[0]
    if isinstance(first, cst.SimpleStatementLine) and isinstance(first.body[0], cst.Expr):
        if isinstance(first.body[0].value, cst.SimpleString | cst.ConcatenatedString):
            return list(body[1:])
    return list(body)
