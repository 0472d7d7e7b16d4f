"""What an annotation says an argument is, in any spelling: `torch.LongTensor | None`, `Optional[FloatTensor]`, `tuple[Tensor, ...]`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import Enum
from functools import cache

CONTAINERS = frozenset({"tuple", "Tuple", "list", "List", "Sequence", "Iterable"})
MAPPINGS = frozenset({"dict", "Dict", "Mapping", "MutableMapping", "OrderedDict"})
UNIONS = frozenset({"Union", "Optional"})


class Annotated(Enum):
    """OTHER: nothing that holds a tensor at a place of its own. NOTHING: there is no annotation."""

    TENSOR = "a tensor"
    TENSORS = "a tuple or list of tensors"
    OTHER = "something else"
    NOTHING = "unannotated"


@cache
def annotated(annotation: str | None) -> Annotated:
    """What an argument is. Of alternatives, a tensor comes before several, and several before anything else."""
    if annotation is None:
        return Annotated.NOTHING
    try:
        node = ast.parse(annotation.strip(), mode="eval").body
    except SyntaxError:
        return Annotated.OTHER
    kinds = {_kind(each) for each in _alternatives(node)}
    return next(kind for kind in Annotated if kind in kinds)


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Constant(value=str(text)):
            # A forward reference.
            try:
                yield from _alternatives(ast.parse(text.strip(), mode="eval").body)
            except SyntaxError:
                yield node
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            yield from _alternatives(left)
            yield from _alternatives(right)
        case ast.Subscript(value=base, slice=inner) if _name(base) in UNIONS:
            for each in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
                yield from _alternatives(each)
        case _:
            yield node


def _kind(node: ast.expr) -> Annotated:
    match node:
        case ast.Name() | ast.Attribute():
            return Annotated.TENSOR if _name(node).endswith("Tensor") else Annotated.OTHER
        case ast.Subscript(value=base, slice=inner):
            if _name(base) in MAPPINGS or not _holds_tensor(inner):
                return Annotated.OTHER
            # What is subscripted otherwise says more about one: `Annotated[torch.Tensor, …]`, `Float[torch.Tensor, "b s"]`.
            return Annotated.TENSORS if _name(base) in CONTAINERS else Annotated.TENSOR
        case _:
            return Annotated.OTHER


def _holds_tensor(node: ast.expr) -> bool:
    alternatives = node.elts if isinstance(node, ast.Tuple) else [node]
    found = {_kind(each) for inner in alternatives for each in _alternatives(inner)}
    return bool(found & {Annotated.TENSOR, Annotated.TENSORS})


def _name(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
