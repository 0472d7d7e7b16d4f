"""Buffers of whole numbers that a module computes sizes from, in the arithmetic of tensors:

    self.stride = nn.Buffer(torch.tensor(stride, dtype=torch.int64), persistent=False)
    …
    n_frames = (length - self.kernel_size + self.padding_total) / self.stride + 1
    n_frames = torch.ceil(n_frames).to(torch.int64) - 1
    …
    return n_frames * self.stride + self.kernel_size - self.padding_total - length

In a graph nothing is known of such a size. Read as a number, the buffer leaves an expression of the sizes that are known.

What a method computes of them is followed statement by statement. They are numbers in sums, products and quotients with other
numbers, as results of a method whose callers take them for such, and as arguments that the callee's annotation says are ints. A
method that does anything else with one of them is left as it is.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import libcst as cst

from ..facts import Ref
from ..source import Source
from .divisions import is_size
from .segments import assign, name
from .trees import Tree, Trees, walk

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBuffers:
    names: tuple[str, ...]
    methods: tuple[Reads, ...]


def of_class(source: Source, trees: Trees, ref: Ref) -> SizeBuffers | None:
    """Those of a class that makes them in its own body, of a file that makes any."""
    text = source.file(ref.file).text
    if "persistent=False" not in text or not any(f"torch.{dtype}" in text for dtype in INT64):
        return None
    node = source.definition(ref).node
    names = (
        [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
        if isinstance(node, ast.ClassDef)
        else []
    )
    if "__init__" not in names or len(set(names)) < len(names):
        return None
    methods = {each: trees.method(ref, each) for each in names}
    if "persistent=False" not in methods["__init__"].text:
        return None
    return find(methods.pop("__init__"), tuple(methods.values()), text)


def find(init: Tree, others: Sequence[Tree], text: str) -> SizeBuffers | None:
    """The buffers that a class makes in its `__init__`, and the other methods of its body that read them as numbers.

    `text` is that of the whole file: what it calls besides keeps its result.
    """
    written = {each for tree in others for each in _written(tree.method)}
    made = tuple(each for each in _made(init.method) if each not in written)
    methods = {tree.method.name.value: tree for tree in others} if made else {}
    calls = {key: _called(tree.method) for key, tree in methods.items()}
    own = sum(calls.values(), _called(init.method))
    tensors = {key for key in methods if key in _called(init.method) or text.count(f".{key}(") > own.count(key)}
    while True:
        found = _follow(methods, made, tensors)
        returning = {key for key, each in found.items() if each is not None and each.returns_number}
        # What any caller takes for more than a number stays a tensor.
        taken = {each for key, names in calls.items() if found[key] is None for each in names if each in returning}
        if not taken:
            break
        tensors |= taken
    reads = tuple(each for each in found.values() if each is not None and each.places)
    read = {place.attr.value for each in reads for place in each.places}
    names = tuple(each for each in made if each in read)
    return SizeBuffers(names=names, methods=reads) if names else None


def _follow(methods: Mapping[str, Tree], made: Collection[str], tensors: Collection[str]) -> dict[str, Reads | None]:
    """What each method reads as numbers; None for one that can't, those in `tensors` among them if they return a number."""
    returning: set[str] = set()
    while True:
        found: dict[str, Reads | None] = {}
        for key, tree in methods.items():
            reads = _Follow(made, methods, returning).reads(tree)
            found[key] = None if reads is not None and reads.returns_number and key in tensors else reads
        more = {key for key, each in found.items() if each is not None and each.returns_number} - returning
        if not more:
            return found
        returning |= more


class _UnfollowedError(Exception):
    """A number is used as something else, or may be."""


class _Follow:
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
                kinds.update(dict.fromkeys((each.value for each in walk(statement) if name(each)), _Kind.OTHER))  # type: ignore[attr-defined]

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
            or (isinstance(each, cst.Call) and _own_method(each) in self.returning)
            for each in walk(node)
        )

    def _is_buffer(self, node: cst.CSTNode) -> bool:
        return _own(node) in self.made

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
        ) if _is_int64(dtype):
            return value
    return None


def _is_int64(dtype: cst.CSTNode) -> bool:
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


def _own(node: cst.CSTNode) -> str:
    """The attribute that `self.attribute` is."""
    match node:
        case cst.Attribute(value=cst.Name(value="self"), attr=cst.Name(value=read)):
            return read
    return ""


def _own_method(call: cst.Call) -> str:
    return _own(call.func)


def _called(method: cst.FunctionDef) -> list[str]:
    """The methods of its own that a method calls, each as often as it does."""
    return [_own_method(each) for each in walk(method) if isinstance(each, cst.Call) and _own_method(each)]


def _written(method: cst.FunctionDef) -> Iterator[str]:
    """The attributes of its own that a method sets or deletes, each as often as it does."""
    for node in walk(method):
        if isinstance(node, cst.AssignTarget | cst.AugAssign | cst.AnnAssign | cst.Del | cst.For | cst.WithItem):
            targets = [node] if isinstance(node, cst.Del | cst.WithItem) else [node.target]
            yield from (read for target in targets for each in walk(target) if (read := _own(each)))
        elif isinstance(node, cst.Call) and _own_method(node) == "register_buffer" and node.args:
            registered = node.args[0].value
            if isinstance(registered, cst.SimpleString):
                yield str(registered.evaluated_value)


def _made(init: cst.FunctionDef) -> tuple[str, ...]:
    """The buffers of whole numbers, in no state dict, that an `__init__` makes once and whatever the config says."""
    written = list(_written(init))
    whole: set[str] = set()
    made: dict[str, None] = {}
    for statement in cst.ensure_type(init.body, cst.IndentedBlock).body:
        target, value = assign(statement)
        buffer, held = _buffer(statement)
        if buffer and _is_whole(held, whole, made) and written.count(buffer) == 1:
            made[buffer] = None
        elif target and _is_whole(value, whole, made):
            whole.add(target)
        else:
            whole -= {name(each) for each in walk(statement)} if not buffer else set()
    return tuple(made)


def _buffer(statement: cst.BaseStatement) -> tuple[str, cst.BaseExpression | None]:
    """`self.name = nn.Buffer(value, persistent=False)` or `self.register_buffer("name", value, persistent=False)`."""
    match statement:
        case cst.SimpleStatementLine(
            body=[
                cst.Assign(
                    targets=[cst.AssignTarget(target=target)],
                    value=cst.Call(
                        func=cst.Attribute(value=cst.Name(value="nn"), attr=cst.Name(value="Buffer")),
                        args=[cst.Arg(keyword=None, star="", value=value), persistent],
                    ),
                )
            ]
        ) if _is_not_persistent(persistent):
            return _own(target), value
        case cst.SimpleStatementLine(
            body=[
                cst.Expr(
                    value=cst.Call(args=[cst.Arg(value=cst.SimpleString() as named), cst.Arg(value=value), persistent])
                )
            ]
        ) if _is_not_persistent(persistent):
            registers = [each for each in walk(statement) if _own(each) == "register_buffer"]
            return (str(named.evaluated_value), value) if registers else ("", None)
    return "", None


def _is_not_persistent(argument: cst.Arg) -> bool:
    return argument.keyword is not None and argument.keyword.value == "persistent" and name(argument.value) == "False"


def _is_whole(value: cst.BaseExpression | None, whole: Collection[str], made: Collection[str]) -> bool:
    """Whether it is a tensor of one int64, or computed from such."""
    match value:
        case cst.Name(value=read):
            return read in whole
        case cst.Attribute():
            return _own(value) in made
        case cst.BinaryOperation(left=left, operator=cst.Add() | cst.Subtract(), right=right):
            return _is_whole(left, whole, made) and _is_whole(right, whole, made)
        case cst.Call(
            func=cst.Attribute(value=cst.Name(value="torch"), attr=cst.Name(value="tensor")), args=[given, dtype]
        ):
            is_number = not isinstance(given.value, cst.List | cst.Tuple)
            return (
                is_number and dtype.keyword is not None and dtype.keyword.value == "dtype" and _is_int64(dtype.value)
            )
    return False


def _is_int(parameter: cst.Param) -> bool:
    return parameter.annotation is not None and name(parameter.annotation.annotation) == "int"
