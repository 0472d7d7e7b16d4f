"""The calls of an attention interface for the segments of a packed sequence, and the concatenation of what they give.

In one statement, or in two, or with the calls' results kept whole for the sake of the weights:

    outputs = [interface(self, q, k, v, …)[0] for q, k, v in zip(*splits)]
    output = torch.cat(outputs, dim=1)

    outputs = [interface(self, q, k, v, …) for q, k, v in zip(*splits)]
    output = torch.cat([each[0] for each in outputs], dim=1)
    weights = None
    if outputs[0][1] is not None: …

    outputs, weights = [], []
    for q, k, v in zip(*splits):
        output, weight = interface(self, q, k, v, …)
        outputs.append(output)
        weights.append(weight)
    output = torch.cat(outputs, dim=1)
    weights = None if weights[0] is None else …

Under SDPA every weight is None. So a block under `outputs[0][1] is not None` doesn't run, and the weights are None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """The first `count` statements compute `output` and, if `weights` is a name, that. `gone` are names they bind besides."""

    count: int
    output: str
    weights: str | None
    call: cst.Call
    gone: tuple[str, ...] = ()


def segments(body: Sequence[cst.BaseStatement], splits: str) -> Segments | None:
    """The calls for the segments of `splits` at the start of `body`."""
    found = _comprehension(body, splits) or _kept_whole(body, splits) or _loop(body, splits)
    return found if found is not None and found.output else None


def _comprehension(body: Sequence[cst.BaseStatement], splits: str) -> Segments | None:
    calls, value = _at(body, 0)
    call = _each(_concatenated(value), splits, first=True)
    if call is not None:
        return Segments(count=1, output=calls, weights=None, call=call)
    call, (output, joined) = _each(value, splits, first=True), _at(body, 1)
    if call is None or name(_concatenated(joined)) != calls:
        return None
    return Segments(count=2, output=output, weights=None, call=call, gone=(calls,))


def _kept_whole(body: Sequence[cst.BaseStatement], splits: str) -> Segments | None:
    calls, value = _at(body, 0)
    output, joined = _at(body, 1)
    call = _each(value, splits, first=False)
    if call is None or not _is_first_of_each(_concatenated(joined), calls):
        return None
    weights, nothing = _at(body, 2)
    if name(nothing) != "None":
        return Segments(count=2, output=output, weights=None, call=call, gone=(calls,))
    count = 4 if len(body) > 3 and _is_if_weighed(body[3], calls) else 3
    return Segments(count=count, output=output, weights=weights, call=call, gone=(calls,))


def _loop(body: Sequence[cst.BaseStatement], splits: str) -> Segments | None:
    lists, at = _empty_lists(body)
    if not lists or at >= len(body):
        return None
    match body[at]:
        case cst.For(
            target=cst.Tuple(elements=[*each]),
            iter=cst.Call(func=cst.Name(value="zip"), args=[cst.Arg(star="*", value=cst.Name(value=zipped))]),
            body=cst.IndentedBlock(body=[*inner]),
            orelse=None,
        ) if zipped == splits:
            parts = [name(element.value) for element in each]
        case _:
            return None
    output, joined = _at(body, at + 1)
    outputs = name(_concatenated(joined))
    call, appended = _turn(inner)
    if call is None or not _is_segment(call, parts) or outputs not in lists or appended.get(outputs, ("", 0))[1] != 0:
        return None
    others = set(lists) - {outputs}
    if set(appended) != set(lists) or len(others) > 1 or any(appended[other][1] != 1 for other in others):
        return None
    weights = next(iter(others), None)
    count = at + 2
    if weights is not None and count < len(body) and _is_none_or(body[count], weights):
        count += 1
    gone = (*parts, outputs, *(kept for kept, _ in appended.values() if kept))
    return Segments(count=count, output=output, weights=weights, call=call, gone=gone)


def _empty_lists(body: Sequence[cst.BaseStatement]) -> tuple[list[str], int]:
    """The names that statements at the start give empty lists, and how many statements these are."""
    lists: list[str] = []
    for at, statement in enumerate(body):
        match statement:
            case cst.SimpleStatementLine(body=[cst.Assign(targets=[cst.AssignTarget(target=target)], value=value)]):
                names = [each.value for each in target.elements] if isinstance(target, cst.Tuple) else [target]
                values = [each.value for each in value.elements] if isinstance(value, cst.Tuple) else [value]
                if len(names) == len(values) and all(isinstance(v, cst.List) and not v.elements for v in values):
                    lists += [name(each) for each in names]
                    continue
        return lists, at
    return lists, len(body)


def _turn(body: list[cst.BaseStatement]) -> tuple[cst.Call | None, dict[str, tuple[str, int]]]:
    """One turn of the loop: the interface's call, and what each list gets appended: the name it had, and which part of the
    call's result it is."""
    call: cst.Call | None = None
    parts: dict[str, int] = {}
    appended: dict[str, tuple[str, int]] = {}
    for statement in body:
        match statement:
            case cst.SimpleStatementLine(
                body=[
                    cst.Assign(
                        targets=[cst.AssignTarget(target=cst.Tuple(elements=[*names]))], value=cst.Call() as made
                    )
                ]
            ) if call is None and len(names) == 2:
                call, parts = made, {name(each.value): index for index, each in enumerate(names)}
            case cst.SimpleStatementLine(
                body=[cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value=only))], value=value)]
            ) if call is None and (made_first := _first(value)) is not None:
                call, parts = made_first, {only: 0}
            case cst.SimpleStatementLine(
                body=[
                    cst.Expr(
                        value=cst.Call(
                            func=cst.Attribute(value=cst.Name(value=into), attr=cst.Name(value="append")),
                            args=[cst.Arg(keyword=None, star="", value=value)],
                        )
                    )
                ]
            ) if into not in appended:
                if name(value) in parts:
                    appended[into] = name(value), parts[name(value)]
                elif call is None and (made_first := _first(value)) is not None:
                    call, appended[into] = made_first, ("", 0)
                else:
                    return None, {}
            case _:
                return None, {}
    return call, appended


def _at(body: Sequence[cst.BaseStatement], index: int) -> tuple[str, cst.BaseExpression | None]:
    return assign(body[index]) if index < len(body) else ("", None)


def assign(statement: cst.CSTNode) -> tuple[str, cst.BaseExpression | None]:
    """`name = value`; anything else has no name and no value."""
    match statement:
        case cst.SimpleStatementLine(
            body=[cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value=target))], value=value)]
        ):
            return target, value
    return "", None


def _each(value: cst.BaseExpression | None, splits: str, *, first: bool) -> cst.Call | None:
    """The call in `[interface(self, q, k, v, …) for q, k, v in zip(*splits)]`, or of its first result."""
    match value:
        case cst.ListComp(
            elt=element,
            for_in=cst.CompFor(
                target=cst.Tuple(elements=[*each]),
                iter=cst.Call(func=cst.Name(value="zip"), args=[cst.Arg(star="*", value=cst.Name(value=zipped))]),
                ifs=[],
                inner_for_in=None,
            ),
        ) if zipped == splits:
            call = _first(element) if first else element
            names = [name(part.value) for part in each]
            return call if isinstance(call, cst.Call) and _is_segment(call, names) else None
    return None


def _is_segment(call: cst.Call, parts: list[str]) -> bool:
    """Whether the call is `interface(self, q, k, v, …)`, the rest by keyword."""
    given = [name(argument.value) for argument in call.args[:4] if argument.keyword is None and not argument.star]
    rest = call.args[4:]
    return given == ["self", *parts] and all(
        argument.keyword is not None or argument.star == "**" for argument in rest
    )


def _first(value: cst.BaseExpression) -> cst.Call | None:
    """The call in `call[0]`."""
    match value:
        case cst.Subscript(
            value=cst.Call() as call, slice=[cst.SubscriptElement(slice=cst.Index(value=cst.Integer(value="0")))]
        ):
            return call
    return None


def _is_first_of_each(value: cst.BaseExpression | None, calls: str) -> bool:
    """Whether it is `[each[0] for each in calls]`."""
    match value:
        case cst.ListComp(
            elt=cst.Subscript(
                value=cst.Name(value=element),
                slice=[cst.SubscriptElement(slice=cst.Index(value=cst.Integer(value="0")))],
            ),
            for_in=cst.CompFor(target=cst.Name(value=each), iter=cst.Name(value=iterated), ifs=[], inner_for_in=None),
        ):
            return element == each and iterated == calls
    return False


def _is_if_weighed(statement: cst.BaseStatement, calls: str) -> bool:
    """Whether it is `if calls[0][1] is not None: …`, without an else."""
    if not isinstance(statement, cst.If) or statement.orelse is not None:
        return False
    return cst.Module(body=()).code_for_node(statement.test) == f"{calls}[0][1] is not None"


def _is_none_or(statement: cst.BaseStatement, weights: str) -> bool:
    """Whether it is `weights = None if weights[0] is None else …`."""
    target, value = assign(statement)
    if target != weights or not isinstance(value, cst.IfExp):
        return False
    return name(value.body) == "None" and cst.Module(body=()).code_for_node(value.test) == f"{weights}[0] is None"


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


def name(node: cst.CSTNode | None) -> str:
    """The name that an expression is; empty for anything else."""
    return node.value if isinstance(node, cst.Name) else ""
