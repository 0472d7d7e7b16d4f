"""Rule `packed-attention`: one operator in place of attention over segments that are split by lengths read on the host.

Exact where the attention interface is SDPA; the region checks that before it compiles. Outside of a graph upstream's own
method runs. Flash attention keeps upstream's branch, which never split.
"""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from ..analyze.packed import find
from ..analyze.trees import Trees
from ..facts import Ref
from ..source import Source
from .names import Move, Names

PACKED_ATTENTION = "packed_attention"
"""The runtime's operator."""

SEGMENT_ONLY = {"attention_mask": "None", "is_causal": "False"}
"""Arguments of the call for one segment that the operator implies: no mask within a segment, and none causal. A mask that may
be given is handed on: with one the operator is upstream's loop."""


def packed_attention(
    source: Source, trees: Trees, names: Names, owner: Ref, method: str, passed: str, comment: tuple[str, ...]
) -> cst.FunctionDef:
    """The rewritten method. `passed` are the arguments that hand its parameters on, `comment` what stands above the operator."""
    tree = trees.method(owner, method)
    function, packed = tree.method, find(tree)
    assert packed is not None, f"{owner} lost its packed-attention pattern between analysis and rewriting"

    interface, segment = packed.call.func, packed.call.args[4:]
    given = ["self", *packed.tensors, packed.cu_seqlens]
    kept = [argument for argument in segment if not _is_implied(argument)]
    call = cst.Call(
        func=cst.Name(PACKED_ATTENTION),
        args=[cst.Arg(interface), *(cst.Arg(cst.Name(name)) for name in given), *kept],
    )
    statement = cst.SimpleStatementLine(
        body=[cst.Assign(targets=[cst.AssignTarget(cst.Name(packed.output))], value=call)],
        leading_lines=[cst.EmptyLine(comment=cst.Comment(f"# {line}")) for line in comment],
    )
    # SDPA has no weights.
    weights = [cst.parse_statement(f"{packed.weights} = None\n")] if packed.weights is not None else []
    body = [*packed.block.body[: packed.first], statement, *weights, *packed.block.body[packed.last + 1 :]]
    replaced = function.deep_replace(packed.block, packed.block.with_changes(body=body))
    assert isinstance(replaced, cst.FunctionDef)

    moved = replaced.visit(_Method(names, source.file(owner.file), replaced))
    assert isinstance(moved, cst.FunctionDef)
    # What sdpa_attention_forward asks where the call doesn't say.
    causal = ' or getattr(self, "is_causal", True)' if packed.is_causal_by_module else ""
    guard = cst.parse_statement(
        f"if not torch.compiler.is_compiling(){causal}:\n    return super().{method}({passed})\n"
    )
    body_block = cst.ensure_type(moved.body, cst.IndentedBlock)
    first, *rest = _without_docstring(body_block.body)
    if isinstance(first, cst.SimpleStatementLine):
        first = first.with_changes(leading_lines=[cst.EmptyLine(indent=False), *first.leading_lines])
    return moved.with_changes(decorators=[], body=body_block.with_changes(body=[guard, first, *rest]))


def _is_implied(argument: cst.Arg) -> bool:
    if argument.keyword is None or not isinstance(argument.value, cst.Name):
        return False
    return SEGMENT_ONLY.get(argument.keyword.value) == argument.value.value


class _Method(Move):
    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        if original_node.value == PACKED_ATTENTION:
            return updated_node
        return super().leave_Name(original_node, updated_node)


def _without_docstring(body: Sequence[cst.BaseStatement]) -> list[cst.BaseStatement]:
    first = body[0]
    if isinstance(first, cst.SimpleStatementLine) and isinstance(first.body[0], cst.Expr):
        if isinstance(first.body[0].value, cst.SimpleString | cst.ConcatenatedString):
            return list(body[1:])
    return list(body)
