"""Rule `packed-attention`: one operator in place of attention over segments that are split by lengths read on the host.

Exact where the attention interface is SDPA; the region checks that before it compiles. Outside of a graph upstream's own
method runs. Flash attention keeps upstream's branch, which never split.
"""

from __future__ import annotations

import libcst as cst

from ..analyze.packed import find
from ..analyze.trees import Trees
from ..facts import Ref
from ..source import Source
from .method import comment_lines, moved_method
from .names import Names

PACKED_ATTENTION = "packed_attention"
"""The runtime's operator."""

MAX_SEQLEN = "max_seqlen"
"""The parameter by which upstream hands flash attention the longest segment's length (`get_max_seqlen`). The operator takes
it too: without it, it has to take the whole sequence for the bound."""

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
    if any(parameter.name.value == MAX_SEQLEN for parameter in function.params.params):
        kept.insert(0, cst.Arg(cst.Name(MAX_SEQLEN), keyword=cst.Name(MAX_SEQLEN)))
    call = cst.Call(
        func=cst.Name(PACKED_ATTENTION),
        args=[cst.Arg(interface), *(cst.Arg(cst.Name(name)) for name in given), *kept],
    )
    statement = cst.SimpleStatementLine(
        body=[cst.Assign(targets=[cst.AssignTarget(cst.Name(packed.output))], value=call)],
        leading_lines=comment_lines(comment),
    )
    # SDPA has no weights.
    weights = [cst.parse_statement(f"{packed.weights} = None\n")] if packed.weights is not None else []
    body = [*packed.block.body[: packed.first], statement, *weights, *packed.block.body[packed.last + 1 :]]
    replaced = function.deep_replace(packed.block, packed.block.with_changes(body=body))
    assert isinstance(replaced, cst.FunctionDef)

    # What sdpa_attention_forward asks where the call doesn't say.
    causal = ' or getattr(self, "is_causal", True)' if packed.is_causal_by_module else ""
    return moved_method(names, source.file(owner.file), replaced, passed, own=PACKED_ATTENTION, unless=causal)


def _is_implied(argument: cst.Arg) -> bool:
    if argument.keyword is None or not isinstance(argument.value, cst.Name):
        return False
    return SEGMENT_ONLY.get(argument.keyword.value) == argument.value.value
