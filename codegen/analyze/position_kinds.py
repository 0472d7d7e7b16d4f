"""What kinds of positions an expression makes of others: those whose rows stay as they are, and everything else."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from enum import StrEnum

from .kinds import dotted


class Kind(StrEnum):
    """What a value is."""

    NONE = "None"
    SCALAR = "a number, the same for all tokens"
    SIZES = "several sizes"
    LINE = "a range, (sequence)"
    RANGE = "ranges, (batch, sequence)"
    OWN = "the argument as it was given"
    OWN_ROWS = "the argument, (batch, sequence)"
    OWN_THREE = "the argument, where it has three dimensions"
    OWN_FOUR = "the argument, (4, batch, sequence)"
    FIRST = "the first row of the argument, (4, batch, sequence)"
    THREE = "three rows of positions for each token"
    FOUR_RANGES = "ranges, (4, batch, sequence)"
    FOUR_OWN = "the argument four times, (4, batch, sequence)"
    OTHER = "anything else"


Kinds = frozenset[Kind]
State = Mapping[str, Kinds]
OTHER: Kinds = frozenset({Kind.OTHER})
SCALAR: Kinds = frozenset({Kind.SCALAR})
ROWS: Kinds = frozenset({Kind.LINE, Kind.RANGE, Kind.OWN})
_WHOLE = frozenset({"torch.long", "torch.int64", "torch.int32", "torch.int"})
_ROWS_OF = {Kind.FOUR_RANGES: Kind.RANGE, Kind.FOUR_OWN: Kind.OWN_ROWS, Kind.OWN_FOUR: Kind.FIRST}
_BATCHED = {Kind.LINE: Kind.RANGE}
_FOUR = {Kind.LINE: Kind.FOUR_RANGES, Kind.RANGE: Kind.FOUR_RANGES, Kind.OWN: Kind.FOUR_OWN}


def kinds_of(node: ast.expr, state: State) -> Kinds:
    """What a value is, by the kinds of the names in it."""
    match node:
        case ast.Constant(value=None):
            return frozenset({Kind.NONE})
        case ast.Constant(value=bool()):
            return OTHER
        case ast.Constant(value=int()):
            return SCALAR
        case ast.Name(id=name):
            return state.get(name, OTHER)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            ways = ((value, refined(state, test, truth)) for value, truth in ((body, True), (orelse, False)))
            return frozenset().union(*(kinds_of(value, there) for value, there in ways if there is not None))
        case ast.BinOp(left=left, op=op, right=right):
            return _sum(kinds_of(left, state), op, kinds_of(right, state))
        case ast.Attribute(attr="shape"):
            return frozenset({Kind.SIZES})
        case ast.Attribute() if dotted(node).startswith("self.config."):
            return SCALAR
        case ast.Subscript(value=value, slice=index):
            return _part(kinds_of(value, state), index)
        case ast.Call():
            return _call(node, state)
    return OTHER


def refined(state: State, test: ast.expr, truth: bool) -> State | None:
    """What names are where a test came out as `truth`; None where it can't."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return refined(state, operand, not truth)
        case ast.BoolOp(op=op, values=values) if isinstance(op, ast.And) is truth:
            here: State | None = state
            for value in values:
                here = refined(here, value, truth) if here is not None else None
            return here
        case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[ast.Constant(value=None)]) if name in state:
            is_none = isinstance(op, ast.Is) is truth
            if isinstance(op, ast.Is | ast.IsNot):
                return _only(state, name, {each: each for each in state[name] if _may_be(each, is_none)})
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[ast.Constant(value=wanted)]) if truth:
            return _of_size(state, ast.unparse(left), wanted)
    return state


def _may_be(kind: Kind, is_none: bool) -> bool:
    return kind is Kind.OTHER or (kind is Kind.NONE) is is_none


def _of_size(state: State, size: str, wanted: object) -> State | None:
    """Where `x.ndim == 3`, `x.ndim == 2`, or `x.shape[0] == 4` holds."""
    name, _, asked = size.partition(".")
    held = state.get(name, OTHER)
    three = {Kind.OWN_THREE, Kind.OWN_FOUR, Kind.THREE, Kind.FOUR_RANGES, Kind.FOUR_OWN}
    match asked, wanted:
        case (("ndim" | "dim()"), 3):
            kept = {each: each for each in held if each in three or each is Kind.OTHER}
            return _only(state, name, kept | ({Kind.OWN: Kind.OWN_THREE} if Kind.OWN in held else {}))
        case (("ndim" | "dim()"), 2):
            return _only(state, name, {each: each for each in held if each not in three | {Kind.LINE}})
        case "shape[0]", 4:
            kept = {each: each for each in held if each not in (Kind.THREE, Kind.OWN_THREE)}
            return _only(state, name, kept | ({Kind.OWN_THREE: Kind.OWN_FOUR} if Kind.OWN_THREE in held else {}))
    return state


def _only(state: State, name: str, kinds: Mapping[Kind, Kind]) -> State | None:
    return {**state, name: frozenset(kinds.values())} if kinds else None


def _each(kinds: Kinds, becomes: Mapping[Kind, Kind]) -> Kinds:
    """What comes of each kind. None has no methods, and no part: what is done to it raises."""
    return frozenset(becomes.get(each, Kind.OTHER) for each in kinds if each is not Kind.NONE)


def _kept(kinds: Kinds) -> Kinds:
    return frozenset(kinds - {Kind.NONE})


def _sum(left: Kinds, op: ast.operator, right: Kinds) -> Kinds:
    if left == right == SCALAR:
        return SCALAR
    if isinstance(op, ast.Add) and left == SCALAR:
        left, right = right, left
    if isinstance(op, ast.Add | ast.Sub) and right == SCALAR:
        return _each(left, {each: each for each in ROWS})
    return OTHER


def _part(kinds: Kinds, index: ast.expr) -> Kinds:
    written = ast.unparse(index)
    if kinds == {Kind.SIZES}:
        return frozenset({Kind.SIZES}) if isinstance(index, ast.Slice) else SCALAR
    if written in ("None", "(None, :)", "(None, ...)", "None, :", "None, ..."):
        return _each(kinds, _BATCHED)
    return _each(kinds, _ROWS_OF) if written == "0" else OTHER


def _call(node: ast.Call, state: State) -> Kinds:
    if dotted(node.func) == "torch.arange":
        return frozenset({Kind.LINE}) if _is_range(node) else OTHER
    if not isinstance(node.func, ast.Attribute):
        return OTHER
    base, method = node.func.value, node.func.attr
    written = [ast.unparse(each) for each in node.args]
    match method, written:
        case "get_seq_length", _:
            return SCALAR
        case "size", []:
            return frozenset({Kind.SIZES})
        case "size", [_]:
            return SCALAR
        case (("long" | "int" | "contiguous" | "clone" | "detach"), []):
            return _kept(kinds_of(base, state))
        case "to", _ if _moves(node):
            return _kept(kinds_of(base, state))
        case "unsqueeze", ["0"]:
            return _each(kinds_of(base, state), _BATCHED)
        case (("view" | "reshape"), ["1", "-1"]):
            return _each(kinds_of(base, state), _BATCHED)
        case (("view" | "reshape"), ["-1", _]) if kinds_of(node.args[1], state) == SCALAR:
            # As many as there are tokens, which the region sees to: rows stay what they are.
            return _each(kinds_of(base, state), {Kind.OWN: Kind.OWN})
        case ("expand", [_, "-1"]) | ("repeat", [_, "1"]):
            return _each(kinds_of(base, state), {**_BATCHED, Kind.RANGE: Kind.RANGE, Kind.OWN: Kind.OWN})
        case "expand", [("3" | "4") as rows, _, "-1"]:
            inner = _one_row(base)
            four = _each(kinds_of(inner, state), _FOUR) if inner is not None else OTHER
            return four if rows == "4" or Kind.OTHER in four else frozenset({Kind.THREE})
    return OTHER


def _one_row(node: ast.expr) -> ast.expr | None:
    """`x` of `x.view(1, 1, -1)` and of `x[None, ...]`."""
    match node:
        case ast.Call(func=ast.Attribute(value=base, attr="view"), args=given):
            return base if [ast.unparse(each) for each in given] == ["1", "1", "-1"] else None
        case ast.Subscript(value=base, slice=index):
            return base if ast.unparse(index) in ("(None, ...)", "None, ...", "None") else None
    return None


def _is_range(node: ast.Call) -> bool:
    """Whether it rises one by one, in whole numbers."""
    keywords = {each.arg: each.value for each in node.keywords}
    if len(node.args) > 2 or any(isinstance(each, ast.Starred) for each in node.args):
        return False
    if not keywords.keys() <= {"start", "end", "device", "dtype"}:
        return False
    return "dtype" not in keywords or ast.unparse(keywords["dtype"]) in _WHOLE


def _moves(node: ast.Call) -> bool:
    """Whether `.to(…)` keeps values: another device, or whole numbers."""
    values = [*node.args, *(each.value for each in node.keywords)]
    return all(ast.unparse(each) in _WHOLE or ast.unparse(each).endswith("device") for each in values)
