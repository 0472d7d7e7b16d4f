"""The packed-attention pattern: attention over each segment of a packed sequence, split by lengths read on the host.

    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    splits = [torch.split(tensor, lengths.tolist(), dim=2) for tensor in (query, key, value)]
    outputs = [attention_interface(self, q, k, v, …)[0] for q, k, v in zip(*splits)]
    output = torch.cat(outputs, dim=1)

The last two statements may be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst

from .trees import Tree, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One occurrence: the statements `body[first:last + 1]` of `block`, and what they compute from.

    `output` is the name that gets the result, `call` the call of the attention interface for one segment, whose second to
    fourth arguments are that segment's query, key and value.
    """

    block: cst.IndentedBlock
    first: int
    last: int
    output: str
    tensors: tuple[str, str, str]
    cu_seqlens: str
    call: cst.Call

    @property
    def statements(self) -> Sequence[cst.BaseStatement]:
        return self.block.body[self.first : self.last + 1]


def find(tree: Tree) -> Packed | None:
    """The first occurrence of the pattern in a method."""
    if ".tolist()" not in tree.text:
        return None
    for block in walk(tree.method):
        if isinstance(block, cst.IndentedBlock):
            for index in range(len(block.body)):
                found = _at(block, index)
                if found is not None:
                    return found
    return None


def _at(block: cst.IndentedBlock, index: int) -> Packed | None:
    """The pattern where it starts at one statement of a block."""
    assigns = [_assign(statement) for statement in block.body[index : index + 4]]
    (lengths, ends), (splits, segments), *rest = [*assigns, ("", None), ("", None)]
    cu_seqlens, tensors = _differences(ends), _split_tensors(segments, lengths)
    if cu_seqlens is None or tensors is None:
        return None
    # The calls for the segments: a list of their own, then its concatenation, or both in one statement.
    (output, value), (joined_output, joined) = rest[0], rest[1]
    last = 2
    call = _segment_call(value, splits)
    if call is not None:
        concatenated = _concatenated(joined)
        if not (isinstance(concatenated, cst.Name) and concatenated.value == output):
            return None
        last, output = 3, joined_output
    else:
        call = _segment_call(_concatenated(value), splits)
    if call is None:
        return None
    return Packed(
        block=block, first=index, last=index + last, output=output, tensors=tensors, cu_seqlens=cu_seqlens, call=call
    )


def _assign(statement: cst.CSTNode) -> tuple[str, cst.BaseExpression | None]:
    """`name = value`; anything else has no name and no value."""
    match statement:
        case cst.SimpleStatementLine(
            body=[cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value=name))], value=value)]
        ):
            return name, value
    return "", None


def _differences(value: cst.BaseExpression | None) -> str | None:
    """The name in `name[1:] - name[:-1]`."""
    match value:
        case cst.BinaryOperation(
            left=cst.Subscript(
                value=cst.Name(value=ends),
                slice=[cst.SubscriptElement(slice=cst.Slice(lower=cst.Integer(value="1"), upper=None))],
            ),
            operator=cst.Subtract(),
            right=cst.Subscript(
                value=cst.Name(value=starts),
                slice=[
                    cst.SubscriptElement(
                        slice=cst.Slice(
                            lower=None,
                            upper=cst.UnaryOperation(operator=cst.Minus(), expression=cst.Integer(value="1")),
                        )
                    )
                ],
            ),
        ) if ends == starts:
            return ends
    return None


def _split_tensors(value: cst.BaseExpression | None, lengths: str) -> tuple[str, str, str] | None:
    """The three names in `[torch.split(t, lengths.tolist(), dim=2) for t in (query, key, value)]`."""
    match value:
        case cst.ListComp(
            elt=cst.Call(
                func=cst.Attribute(value=cst.Name(value="torch"), attr=cst.Name(value="split")),
                args=[
                    cst.Arg(value=cst.Name(value=element)),
                    cst.Arg(
                        value=cst.Call(
                            func=cst.Attribute(value=cst.Name(value=read), attr=cst.Name(value="tolist")), args=[]
                        )
                    ),
                    cst.Arg(keyword=cst.Name(value="dim"), value=cst.Integer(value="2")),
                ],
            ),
            for_in=cst.CompFor(
                target=cst.Name(value=each),
                iter=cst.Tuple(
                    elements=[
                        cst.Element(value=cst.Name(value=query)),
                        cst.Element(value=cst.Name(value=key)),
                        cst.Element(value=cst.Name(value=states)),
                    ]
                ),
                ifs=[],
                inner_for_in=None,
            ),
        ) if element == each and read == lengths:
            return query, key, states
    return None


def _segment_call(value: cst.BaseExpression | None, splits: str) -> cst.Call | None:
    """The call in `[interface(self, q, k, v, …)[0] for q, k, v in zip(*splits)]`: without a mask, and not causal."""
    match value:
        case cst.ListComp(
            elt=cst.Subscript(
                value=cst.Call(args=[*arguments]) as call,
                slice=[cst.SubscriptElement(slice=cst.Index(value=cst.Integer(value="0")))],
            ),
            for_in=cst.CompFor(
                target=cst.Tuple(elements=[*each]),
                iter=cst.Call(func=cst.Name(value="zip"), args=[cst.Arg(star="*", value=cst.Name(value=zipped))]),
                ifs=[],
                inner_for_in=None,
            ),
        ) if zipped == splits:
            names = ["self", *(_name(element.value) for element in each)]
            given = [_name(argument.value) for argument in arguments[:4] if argument.keyword is None]
            keywords = {_name(argument.keyword): _name(argument.value) for argument in arguments[4:]}
            plain = keywords.get("attention_mask", "None") == "None" and keywords.get("is_causal") == "False"
            return call if names == given and plain else None
    return None


def _concatenated(value: cst.BaseExpression | None) -> cst.BaseExpression | None:
    """What `torch.cat(…, dim=1)` joins."""
    match value:
        case cst.Call(
            func=cst.Attribute(value=cst.Name(value="torch"), attr=cst.Name(value="cat")),
            args=[
                cst.Arg(keyword=None, value=parts),
                cst.Arg(keyword=cst.Name(value="dim"), value=cst.Integer(value="1")),
            ],
        ):
            return parts
    return None


def _name(node: cst.CSTNode | None) -> str:
    return node.value if isinstance(node, cst.Name) else ""
