"""Rule `branchless-clamp`: where upstream clamps what overflowed in a branch on its values, a graph chooses between the clamped
tensor and the one that was.

Exact: the chosen tensor is the one that the branch would have left, and so is its gradient. Outside of a graph upstream's own
method runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import libcst as cst

from ..analyze.clamps import Clamp, find
from ..analyze.trees import Trees
from ..facts import Pattern
from ..source import Source
from .method import comment_lines, moved_method
from .names import Names


def branchless_clamp(
    source: Source, trees: Trees, names: Names, found: Pattern, passed: str, comment: tuple[str, ...]
) -> cst.FunctionDef:
    """The rewritten method. `passed` are the arguments that hand its parameters on, `comment` what stands above the choice."""
    tree = trees.method(found.owner, found.method)
    changed = tree.method.visit(_Choose(find(tree), comment))
    assert isinstance(changed, cst.FunctionDef)
    return moved_method(names, source.file(found.owner.file), changed, passed)


class _Choose(cst.CSTTransformer):
    """Puts the statements of each branch in its place."""

    def __init__(self, found: Iterable[Clamp], comment: tuple[str, ...]) -> None:
        super().__init__()
        self.found = {clamp.branch: clamp for clamp in found}
        self.comment = comment

    def leave_If(self, original_node: cst.If, updated_node: cst.If) -> cst.If | cst.FlattenSentinel[cst.BaseStatement]:
        clamp = self.found.get(original_node)
        if clamp is None:
            return updated_node
        target = cst.Name(clamp.target)
        one, other = (target, clamp.clamped) if clamp.is_negated else (clamp.clamped, target)
        choice = cst.Call(
            func=cst.Attribute(cst.Name("torch"), cst.Name("where")),
            args=[cst.Arg(clamp.check), cst.Arg(one), cst.Arg(other)],
        )
        chosen = cst.SimpleStatementLine(body=[cst.Assign(targets=[cst.AssignTarget(target)], value=choice)])
        first, *rest = *clamp.before, chosen
        first = first.with_changes(leading_lines=[*first.leading_lines, *comment_lines(self.comment)])
        if clamp.known is None:
            return cst.FlattenSentinel(
                [first.with_changes(leading_lines=[*updated_node.leading_lines, *first.leading_lines]), *rest]
            )
        block = cst.ensure_type(updated_node.body, cst.IndentedBlock)
        return updated_node.with_changes(test=clamp.known, body=block.with_changes(body=[first, *rest]))
