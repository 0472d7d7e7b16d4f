"""Buffers of whole numbers that a module computes sizes from, in the arithmetic of tensors:

    self.stride = nn.Buffer(torch.tensor(stride, dtype=torch.int64), persistent=False)
    …
    n_frames = (length - self.kernel_size + self.padding_total) / self.stride + 1
    n_frames = torch.ceil(n_frames).to(torch.int64) - 1
    …
    return n_frames * self.stride + self.kernel_size - self.padding_total - length

In a graph nothing is known of such a size. Read as a number, the buffer leaves an expression of the sizes that are known.

What a method computes of them is followed in `size_flow`.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import libcst as cst

from ..facts import Ref
from ..source import Source
from .segments import assign, name
from .size_flow import INT64, Follow, Reads, is_int64, own, own_method
from .trees import Tree, Trees, walk


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
    made_calls = sum(calls.values(), _called(init.method))
    tensors = {key for key in methods if key in _called(init.method) or text.count(f".{key}(") > made_calls.count(key)}
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
            reads = Follow(made, methods, returning).reads(tree)
            found[key] = None if reads is not None and reads.returns_number and key in tensors else reads
        more = {key for key, each in found.items() if each is not None and each.returns_number} - returning
        if not more:
            return found
        returning |= more


def _called(method: cst.FunctionDef) -> list[str]:
    """The methods of its own that a method calls, each as often as it does."""
    return [own_method(each) for each in walk(method) if isinstance(each, cst.Call) and own_method(each)]


def _written(method: cst.FunctionDef) -> Iterator[str]:
    """The attributes of its own that a method sets or deletes, each as often as it does."""
    for node in walk(method):
        if isinstance(node, cst.AssignTarget | cst.AugAssign | cst.AnnAssign | cst.Del | cst.For | cst.WithItem):
            targets = [node] if isinstance(node, cst.Del | cst.WithItem) else [node.target]
            yield from (read for target in targets for each in walk(target) if (read := own(each)))
        elif isinstance(node, cst.Call) and own_method(node) == "register_buffer" and node.args:
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
            return own(target), value
        case cst.SimpleStatementLine(
            body=[
                cst.Expr(
                    value=cst.Call(args=[cst.Arg(value=cst.SimpleString() as named), cst.Arg(value=value), persistent])
                )
            ]
        ) if _is_not_persistent(persistent):
            registers = [each for each in walk(statement) if own(each) == "register_buffer"]
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
            return own(value) in made
        case cst.BinaryOperation(left=left, operator=cst.Add() | cst.Subtract(), right=right):
            return _is_whole(left, whole, made) and _is_whole(right, whole, made)
        case cst.Call(
            func=cst.Attribute(value=cst.Name(value="torch"), attr=cst.Name(value="tensor")), args=[given, dtype]
        ):
            is_number = not isinstance(given.value, cst.List | cst.Tuple)
            return is_number and dtype.keyword is not None and dtype.keyword.value == "dtype" and is_int64(dtype.value)
    return False
