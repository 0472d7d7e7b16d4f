"""What a method computes of numbers that buffers hold, followed statement by statement.

They are numbers in sums, products and quotients with other numbers, as results of a method whose callers take them for such, and as
arguments that the callee's annotation says are ints. A method that does anything else with one of them is left as it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import libcst as cst

from .divisions import is_size
from .segments import assign, name
from .trees import Tree, walk

INT64 = ("int64", "long")


class _Kind(Enum):
    """What an expression is. A SIZE is an int in eager too; a NUMBER a tensor there; PART of it is such a tensor."""

    SIZE = "size"
    NUMBER = "number"
    PART = "part"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotient:
    """`dividend / divisor + added`, in the statement that computes it, if it has one of its own."""

    dividend: cst.BaseExpression
    divisor: cst.BaseExpression
    added: int
    statement: cst.BaseStatement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Where a method reads such buffers as numbers: `rounded` are the calls that round a quotient up to an int."""

    tree: Tree
    places: tuple[cst.Attribute, ...]
    rounded: Mapping[cst.Call, Quotient]
    returns_number: bool


class _UnfollowedError(Exception):
    """A number is used as something else, or may be."""


class Follow:
    """Follows the numbers through one method.

    Args:
        made: The buffers.
        methods: Those of the class.
        returning: Those of them that return a number.
    """

    def __init__(self, made: Collection[str], methods: Mapping[str, Tree], returning: Collection[str]) -> None:
        self.made = made
        self.methods = methods
        self.returning = returning
        self.places: list[cst.Attribute] = []
        self.rounded: dict[cst.Call, Quotient] = {}
        self.returned: set[_Kind] = set()
        # A quotient that the next statement rounds, and its name.
        self.pending: tuple[str, Quotient] | None = None

    def reads(self, tree: Tree) -> Reads | None:
        """None where a number is used as something else, or where the method is wrapped."""
        method = tree.method
        declared = method.params
        if (
            method.decorators
            or declared.star_kwarg is not None
            or not isinstance(declared.star_arg, cst.MaybeSentinel)
        ):
            return None
        ints = {each.name.value for each in declared.params if _is_int(each)}
        try:
            self._block(cst.ensure_type(method.body, cst.IndentedBlock).body, dict.fromkeys(ints, _Kind.SIZE))
        except _UnfollowedError:
            return None
        if _Kind.PART in self.returned or (_Kind.NUMBER in self.returned and len(self.returned) > 1):
            return None
        return Reads(
            tree=tree,
            places=tuple(self.places),
            rounded=self.rounded,
            returns_number=_Kind.NUMBER in self.returned,
        )

    def _block(self, body: Sequence[cst.BaseStatement], kinds: dict[str, _Kind]) -> None:
        """The statements of a block in order. `kinds` are those of names, and change."""
        for at, statement in enumerate(body):
            target, value = assign(statement)
            quotient = self._quotient(value, kinds)
            if quotient is None:
                self._statement(statement, kinds)
                if self.pending is not None:
                    raise _UnfollowedError
            # Only what the next statement rounds, under the same name, has no other use.
            elif target and at + 1 < len(body) and assign(body[at + 1])[0] == target:
                self.pending = target, dataclasses.replace(quotient, statement=statement)
            else:
                raise _UnfollowedError

    def _statement(self, statement: cst.BaseStatement, kinds: dict[str, _Kind]) -> None:
        target, value = assign(statement)
        if target and value is not None:
            kinds[target] = self._kind(value, kinds)
            return
        match statement:
            case cst.SimpleStatementLine(body=[cst.Return(value=returned)]):
                self.returned.add(self._kind(returned, kinds) if returned is not None else _Kind.OTHER)
            case cst.SimpleStatementLine(body=[cst.Expr(value=called)]):
                self._kind(called, kinds)
            case cst.If(body=cst.IndentedBlock(body=body)):
                self._require_untouched(statement.test, kinds)
                before = dict(kinds)
                self._block(body, kinds)
                self._otherwise(statement.orelse, before)
                kinds.update({each: _either(kinds.get(each), before.get(each)) for each in {*kinds, *before}})
            case _:
                self._require_untouched(statement, kinds)
                named = filter(None, map(name, walk(statement)))
                kinds.update(dict.fromkeys(named, _Kind.OTHER))

    def _otherwise(self, otherwise: cst.If | cst.Else | None, kinds: dict[str, _Kind]) -> None:
        if isinstance(otherwise, cst.If):
            self._statement(otherwise, kinds)
        elif otherwise is not None:
            self._block(cst.ensure_type(otherwise.body, cst.IndentedBlock).body, kinds)

    def _kind(self, value: cst.BaseExpression, kinds: Mapping[str, _Kind]) -> _Kind:
        match value:
            case cst.Integer():
                return _Kind.SIZE
            case cst.Name() if not self._is_pending(value):
                return kinds.get(value.value, _Kind.OTHER)
            case cst.Attribute() if self._is_buffer(value):
                self.places.append(value)
                return _Kind.NUMBER
            case cst.BinaryOperation():
                return self._operation(value, kinds)
            case cst.Call() if (rounded := _rounded(value)) is not None:
                return self._rounding(value, rounded, kinds)
            case cst.Call(func=cst.Attribute(value=cst.Name(value="self"), attr=cst.Name(value=method))):
                self._arguments(value, self.methods.get(method), kinds)
                return _Kind.NUMBER if method in self.returning else _Kind.OTHER
        self._require_untouched(value, kinds)
        return _Kind.SIZE if is_size(value) else _Kind.OTHER

    def _operation(self, value: cst.BinaryOperation, kinds: Mapping[str, _Kind]) -> _Kind:
        left, right = self._kind(value.left, kinds), self._kind(value.right, kinds)
        if not {left, right} & {_Kind.NUMBER, _Kind.PART}:
            return _Kind.SIZE if left is right is _Kind.SIZE and _is_whole_operation(value) else _Kind.OTHER
        match value.operator:
            case cst.Add() | cst.Subtract() | cst.Multiply():
                return _Kind.NUMBER if {left, right} <= {_Kind.NUMBER, _Kind.SIZE} else _Kind.PART
            # By a literal, which isn't zero: there a tensor and a number differ.
            case cst.FloorDivide() if isinstance(value.right, cst.Integer) and value.right.evaluated_value > 0:
                return left
        raise _UnfollowedError

    def _rounding(self, call: cst.Call, value: cst.BaseExpression, kinds: Mapping[str, _Kind]) -> _Kind:
        """`torch.ceil(value).to(torch.int64)`."""
        if self.pending is not None and name(value) == self.pending[0]:
            quotient: Quotient | None = self.pending[1]
            self.pending = None
        else:
            quotient = self._quotient(value, kinds)
        if quotient is None:
            self._require_untouched(call, kinds)
            return _Kind.OTHER
        self.rounded[call] = quotient
        return _Kind.NUMBER

    def _quotient(self, value: cst.BaseExpression | None, kinds: Mapping[str, _Kind]) -> Quotient | None:
        """`dividend / divisor`, `… + 1` or `… - 1`, of whole numbers of which one at least is a buffer's."""
        match value:
            case cst.BinaryOperation(
                left=cst.BinaryOperation() as left, operator=operator, right=cst.Integer() as right
            ) if isinstance(operator, cst.Add | cst.Subtract):
                found = self._quotient(left, kinds)
                sign = 1 if isinstance(operator, cst.Add) else -1
                known = found is not None and not found.added
                return dataclasses.replace(found, added=sign * right.evaluated_value) if found and known else None
            case cst.BinaryOperation(left=dividend, operator=cst.Divide(), right=divisor):
                if self._touches(value, kinds):
                    if {self._kind(dividend, kinds), self._kind(divisor, kinds)} <= {_Kind.NUMBER, _Kind.SIZE}:
                        return Quotient(dividend=dividend, divisor=divisor, added=0)
                    raise _UnfollowedError
        return None

    def _arguments(self, call: cst.Call, callee: Tree | None, kinds: Mapping[str, _Kind]) -> None:
        """What a method of the class is called with: a number only where its annotation has an int."""
        for at, argument in enumerate(call.args):
            if not self._touches(argument.value, kinds):
                continue
            said = _annotation(callee, at, argument) if callee is not None and not argument.star else ""
            match argument.value:
                case cst.Tuple(elements=elements) if re.fullmatch(r"tuple\[int(, (int|\.\.\.))*\]", said):
                    for element in elements:
                        self._kind(element.value, kinds)
                case each if said == "int":
                    self._kind(each, kinds)
                case _:
                    raise _UnfollowedError

    def _require_untouched(self, node: cst.CSTNode, kinds: Mapping[str, _Kind]) -> None:
        if self._touches(node, kinds):
            raise _UnfollowedError

    def _touches(self, node: cst.CSTNode, kinds: Mapping[str, _Kind]) -> bool:
        """Whether a number is anywhere inside."""
        return any(
            self._is_buffer(each)
            or self._is_pending(each)
            or kinds.get(name(each)) in (_Kind.NUMBER, _Kind.PART)
            or (isinstance(each, cst.Call) and own_method(each) in self.returning)
            for each in walk(node)
        )

    def _is_buffer(self, node: cst.CSTNode) -> bool:
        return own(node) in self.made

    def _is_pending(self, node: cst.CSTNode) -> bool:
        return self.pending is not None and name(node) == self.pending[0]


def _either(one: _Kind | None, other: _Kind | None) -> _Kind:
    """What a name is after a branch."""
    if one is other and one is not None:
        return one
    return _Kind.PART if {one, other} & {_Kind.NUMBER, _Kind.PART} else _Kind.OTHER


def _is_whole_operation(value: cst.BinaryOperation) -> bool:
    return isinstance(value.operator, cst.Add | cst.Subtract | cst.Multiply | cst.FloorDivide)


def _rounded(call: cst.Call) -> cst.BaseExpression | None:
    """What `torch.ceil(…).to(torch.int64)` rounds."""
    match call:
        case cst.Call(
            func=cst.Attribute(
                value=cst.Call(
                    func=cst.Attribute(value=cst.Name(value="torch"), attr=cst.Name(value="ceil")),
                    args=[cst.Arg(keyword=None, star="", value=value)],
                ),
                attr=cst.Name(value="to"),
            ),
            args=[cst.Arg(keyword=None, star="", value=dtype)],
        ) if is_int64(dtype):
            return value
    return None


def is_int64(dtype: cst.CSTNode) -> bool:
    match dtype:
        case cst.Attribute(value=cst.Name(value="torch"), attr=cst.Name(value=read)):
            return read in INT64
    return False


def _annotation(callee: Tree, at: int, argument: cst.Arg) -> str:
    """What is said of the parameter that takes a call's argument."""
    declared = callee.method.params.params
    if any(name(each.decorator) == "classmethod" for each in callee.method.decorators):
        return ""
    is_static = any(name(each.decorator) == "staticmethod" for each in callee.method.decorators)
    if argument.keyword is not None:
        taken = [each for each in declared if each.name.value == argument.keyword.value]
    else:
        taken = list(declared[at + (not is_static) :][:1])
    return callee.code(taken[0].annotation.annotation) if taken and taken[0].annotation is not None else ""


def own(node: cst.CSTNode) -> str:
    """The attribute that `self.attribute` is."""
    match node:
        case cst.Attribute(value=cst.Name(value="self"), attr=cst.Name(value=read)):
            return read
    return ""


def own_method(call: cst.Call) -> str:
    return own(call.func)


def _is_int(parameter: cst.Param) -> bool:
    return parameter.annotation is not None and name(parameter.annotation.annotation) == "int"
