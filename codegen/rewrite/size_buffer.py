"""Rule `size-buffer`: whole numbers in buffers, which upstream computes sizes from as tensors, are numbers in a graph.

Exact: sums and products of whole numbers are the same, and the runtime's division is where float32 has each of them. Outside of a
graph upstream's own method runs, and inside of one that isn't a region's.
"""

from __future__ import annotations

from collections.abc import Collection

import libcst as cst

from ..analyze.size_flow import Quotient, Reads
from ..source import Source
from .method import comment_lines, moved_method, without_docstring
from .names import Names

SIZE_BUFFERS = "SizeBuffers"
"""The runtime's mixin, whose `vgen_sizes` has the numbers."""
DIVIDE_UP = "divide_rounding_up"
"""The runtime's function."""


def size_buffer(source: Source, names: Names, reads: Reads, comment: tuple[str, ...]) -> cst.FunctionDef:
    """The rewritten method. `comment` is what stands above its body."""
    method = reads.tree.method
    changed = method.visit(_Numbers(reads))
    assert isinstance(changed, cst.FunctionDef)
    block = cst.ensure_type(changed.body, cst.IndentedBlock)
    first, *rest = without_docstring(block.body)
    assert isinstance(first, cst.SimpleStatementLine | cst.BaseCompoundStatement)
    first = first.with_changes(leading_lines=[*first.leading_lines, *comment_lines(comment)])
    changed = changed.with_changes(body=block.with_changes(body=[first, *rest]))
    passed = ", ".join(
        [each.name.value for each in method.params.params[1:]]
        + [f"{each.name.value}={each.name.value}" for each in method.params.kwonly_params]
    )
    file = source.file(reads.tree.ref.file)
    return moved_method(names, file, changed, passed, own=DIVIDE_UP, unless=" or not self.vgen_sizes")


class _Numbers(cst.CSTTransformer):
    """Puts numbers in the place of buffers, and the runtime's division in that of upstream's rounded quotients."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.places: Collection[cst.Attribute] = reads.places
        self.rounded = reads.rounded
        self.gone = {each.statement for each in reads.rounded.values() if each.statement is not None}

    def leave_Attribute(self, original_node: cst.Attribute, updated_node: cst.Attribute) -> cst.BaseExpression:
        if original_node not in self.places:
            return updated_node
        sizes = cst.Attribute(cst.Name("self"), cst.Name("vgen_sizes"))
        key = cst.Index(cst.SimpleString(f'"{original_node.attr.value}"'))
        return cst.Subscript(sizes, [cst.SubscriptElement(key)])

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.BaseExpression:
        quotient = self.rounded.get(original_node)
        return self._division(quotient) if quotient is not None else updated_node

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.RemovalSentinel:
        return cst.RemoveFromParent() if original_node in self.gone else updated_node

    def _division(self, quotient: Quotient) -> cst.Call:
        whole = [quotient.dividend.visit(self), quotient.divisor.visit(self)]
        # Parentheses around them were for the division.
        args = [cst.Arg(each.with_changes(lpar=[], rpar=[])) for each in whole if isinstance(each, cst.BaseExpression)]
        if quotient.added:
            args.append(cst.Arg(cst.parse_expression(str(quotient.added)), keyword=cst.Name("added")))
        return cst.Call(cst.Name(DIVIDE_UP), args)
