"""The packed-attention pattern: attention over each segment of a packed sequence, split by lengths read on the host.

    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    splits = [torch.split(tensor, lengths.tolist(), dim=2) for tensor in (query, key, value)]

and then the calls for the segments, in one of the forms of `codegen.analyze.segments`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst

from .segments import Segments, assign, name, segments
from .trees import Tree, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One occurrence: the statements `body[first:last + 1]` of `block`, and what they compute from.

    `output` is the name that gets the result, `weights` the one that gets the attention weights, of which SDPA has none, `call`
    the call of the attention interface for one segment, whose second to fourth arguments are that segment's query, key and
    value.
    """

    block: cst.IndentedBlock
    first: int
    last: int
    output: str
    weights: str | None
    tensors: tuple[str, str, str]
    cu_seqlens: str
    call: cst.Call

    @property
    def statements(self) -> Sequence[cst.BaseStatement]:
        return self.block.body[self.first : self.last + 1]

    @property
    def is_causal_by_module(self) -> bool:
        """Whether the call leaves it to the module's attribute to say if attention is causal."""
        return "is_causal" not in keywords(self.call)


def find(tree: Tree) -> Packed | None:
    """The first occurrence of the pattern in a method."""
    if ".tolist()" not in tree.text:
        return None
    for block in walk(tree.method):
        if isinstance(block, cst.IndentedBlock):
            for index in range(len(block.body)):
                found = _at(tree.method, block, index)
                if found is not None:
                    return found
    return None


def _at(method: cst.FunctionDef, block: cst.IndentedBlock, index: int) -> Packed | None:
    """The pattern where it starts at one statement of a block."""
    lengths, ends = assign(block.body[index])
    splits, parts = assign(block.body[index + 1]) if index + 1 < len(block.body) else ("", None)
    cu_seqlens, tensors = _differences(ends), _split_tensors(parts, lengths)
    if cu_seqlens is None or tensors is None:
        return None
    found = segments(block.body[index + 2 :], splits)
    if found is None or not _is_exact(method, found):
        return None
    last = index + 1 + found.count
    # What the rewrite takes away mustn't be missed by what it leaves.
    gone = {lengths, splits, *found.gone} - {found.output, found.weights}
    within = [node for statement in block.body[index : last + 1] for node in walk(statement)]
    if _is_read_outside(method, within, gone) or (found.weights and _is_used(method, within, found.weights)):
        return None
    return Packed(
        block=block,
        first=index,
        last=last,
        output=found.output,
        weights=found.weights,
        tensors=tensors,
        cu_seqlens=cu_seqlens,
        call=found.call,
    )


def _is_exact(method: cst.FunctionDef, found: Segments) -> bool:
    """Whether the operator computes the same: what it has to be told is told, and no mask or causality is asked for.

    A mask that is only perhaps given, it hands on to upstream's own loop.
    """
    given = keywords(found.call)
    causal, mask = given.get("is_causal"), given.get("attention_mask")
    told = set(given) | {key for name in _splats(found.call) for key in _keys(method, name)}
    return (
        (causal is None or (isinstance(causal, cst.Name) and causal.value == "False"))
        and (mask is None or isinstance(mask, cst.Name))
        and "scaling" in told
    )


def keywords(call: cst.Call) -> dict[str, cst.BaseExpression]:
    """The keyword arguments that a call spells out."""
    return {argument.keyword.value: argument.value for argument in call.args if argument.keyword is not None}


def _splats(call: cst.Call) -> list[str]:
    return [name(argument.value) for argument in call.args if argument.star == "**"]


def _keys(method: cst.FunctionDef, wanted: str) -> set[str]:
    """The keys of a dict literal that a local name is given."""
    for node in walk(method):
        target, value = assign(node)
        if target == wanted and isinstance(value, cst.Dict):
            entries = [entry.key for entry in value.elements if isinstance(entry, cst.DictElement)]
            return {str(key.evaluated_value) for key in entries if isinstance(key, cst.SimpleString)}
    return set()


def _is_read_outside(method: cst.FunctionDef, within: list[cst.CSTNode], names: set[str]) -> bool:
    """Whether a statement that stays uses one of the names. Assigning one again is no use of it."""
    inside = {id(node) for node in within}
    targets = {
        id(part)
        for node in walk(method)
        if isinstance(node, cst.AssignTarget | cst.CompFor)
        for part in walk(node.target)
    }
    return any(
        name(node) in names and id(node) not in inside | targets for node in walk(method) if isinstance(node, cst.Name)
    )


def _is_used(method: cst.FunctionDef, within: list[cst.CSTNode], weights: str) -> bool:
    """Whether the weights are used for more than being returned."""
    returned = [
        element.value
        for node in walk(method)
        if isinstance(node, cst.Return) and isinstance(node.value, cst.Tuple)
        for element in node.value.elements
    ]
    return _is_read_outside(method, [*within, *returned], {weights})


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
