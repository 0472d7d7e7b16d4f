"""A method that loops over values read on the host, and computes from its arguments alone:

    @staticmethod
    def resize(embeddings, shapes, max_length):
        resized = torch.empty((shapes.shape[0], max_length, embeddings.shape[-1]), dtype=embeddings.dtype, …)
        for i in range(shapes.shape[0]):
            height, width = shapes[i].tolist()
            …
        return resized

or, with a list that is joined at the end, `return torch.cat(parts, dim=0)`. A graph would hold one turn of the loop for each value
that it was made with; as one operator it is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst

from .segments import assign, name
from .trees import Tree, walk

PURE = frozenset(
    {
        "append",
        "cat",
        "contiguous",
        "empty",
        "enumerate",
        "expand",
        "flatten",
        "float",
        "interpolate",
        "len",
        "ones",
        "permute",
        "prod",
        "range",
        "repeat",
        "reshape",
        "size",
        "split",
        "squeeze",
        "to",
        "tolist",
        "torch_compilable_check",
        "transpose",
        "unsqueeze",
        "view",
        "zeros",
        "zip",
    }
)
"""The last names of what such a method may call: nothing of it changes a tensor or is random, and of all of it only `to` and
`float` change a dtype."""
CASTS = ("to", "float")
SHAPED = ("repeat", "reshape", "view", "expand")
"""Methods that are told the size of what they return, one argument for each dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """`parameters` are all but `self`; `before` are the statements that the size is computed by; a dimension is None where values
    decide about it."""

    is_static: bool
    parameters: tuple[str, ...]
    before: Sequence[cst.BaseStatement]
    size: tuple[cst.BaseExpression | None, ...]
    statement: cst.For


def find(tree: Tree) -> Loop | None:
    """What a method is, if it is such a one."""
    method = tree.method
    decorators = [name(each.decorator) for each in method.decorators]
    if ".tolist()" not in tree.text or decorators not in ([], ["staticmethod"]):
        return None
    declared, body = method.params, cst.ensure_type(method.body, cst.IndentedBlock).body
    names = [each.name.value for each in declared.params]
    others = (*declared.kwonly_params, *declared.posonly_params)
    if others or not isinstance(declared.star_arg, cst.MaybeSentinel) or declared.star_kwarg is not None:
        return None
    parameters = tuple(names if decorators else names[1:])
    loops = [each for each in body if isinstance(each, cst.For)]
    if not parameters or len(loops) != 1 or not _is_pure(method, set() if decorators else {names[0]}):
        return None
    match body[-1]:
        case cst.SimpleStatementLine(body=[cst.Return(value=returned)]) if returned is not None:
            found = _filled(body, loops[0], returned, parameters) or _joined(body, loops[0], returned, parameters)
        case _:
            return None
    if found is None or sum(isinstance(each, cst.Return) for each in walk(method)) > 1:
        return None
    before, size = found
    return Loop(is_static=bool(decorators), parameters=parameters, before=before, size=size, statement=loops[0])


def _is_pure(method: cst.FunctionDef, instance: set[str]) -> bool:
    """Whether it neither reads the instance nor calls or changes anything that isn't known to be its own."""
    made = {
        target
        for each in walk(method)
        for target, value in [assign(each)]
        if _called(value) in ("empty", "zeros", "ones")
    }
    for node in walk(method.body):
        match node:
            case cst.Name(value=read) if read in instance:
                return False
            case cst.Call() if _called(node) not in PURE:
                return False
            case cst.AugAssign() | cst.Del() | cst.Global() | cst.Nonlocal() | cst.FunctionDef() | cst.Lambda():
                return False
            case cst.AssignTarget(target=cst.Attribute()):
                return False
            case cst.AssignTarget(target=cst.Subscript(value=changed)) if name(changed) not in made:
                return False
    return True


def _called(value: cst.CSTNode | None) -> str:
    """The last name of what is called."""
    match value:
        case cst.Call(func=cst.Name(value=called) | cst.Attribute(attr=cst.Name(value=called))):
            return called
    return ""


_Found = tuple[list[cst.BaseStatement], tuple[cst.BaseExpression | None, ...]]


def _filled(
    body: Sequence[cst.BaseStatement], loop: cst.For, returned: cst.BaseExpression, parameters: tuple[str, ...]
) -> _Found | None:
    """`resized = torch.empty((…), dtype=first.dtype, device=first.device)`, and what its size is computed by."""
    before: list[cst.BaseStatement] = []
    for statement in body[: body.index(loop)]:
        target, value = assign(statement)
        if (
            target
            and target == name(returned)
            and isinstance(value, cst.Call)
            and _called(value) in ("empty", "zeros")
        ):
            given = {each.keyword.value: each.value for each in value.args if each.keyword is not None}
            first = value.args[0].value
            alike = all(_is_of(given.get(key), key, parameters[0], body) for key in ("dtype", "device"))
            if not isinstance(first, cst.Tuple) or not alike:
                return None
            size = tuple(element.value for element in first.elements)
            return _needed(before, size), size
        if target in parameters:
            return None
        before += [statement] if target else []
    return None


def _needed(before: list[cst.BaseStatement], size: Sequence[cst.BaseExpression]) -> list[cst.BaseStatement]:
    """Those of the assignments that the size is computed by, in order."""
    wanted = {node.value for each in size for node in walk(each) if isinstance(node, cst.Name)}
    kept: list[cst.BaseStatement] = []
    for statement in reversed(before):
        target, value = assign(statement)
        if target in wanted and value is not None:
            kept.insert(0, statement)
            wanted |= {node.value for node in walk(value) if isinstance(node, cst.Name)}
    return kept


def _joined(
    body: Sequence[cst.BaseStatement], loop: cst.For, returned: cst.BaseExpression, parameters: tuple[str, ...]
) -> _Found | None:
    """`torch.cat(parts, dim=0)`, where each part is made of the first parameter, and its number of dimensions is told."""
    match returned:
        case cst.Call(
            args=[
                cst.Arg(keyword=None, value=cst.Name(value=parts)),
                cst.Arg(keyword=cst.Name(value="dim"), value=cst.Integer(value="0")),
            ]
        ) if _called(returned) == "cat":
            appended = [node for node in walk(loop) if _called(node) == "append"]
        case _:
            return None
    if len(appended) != 1 or not isinstance(appended[0], cst.Call) or not isinstance(appended[0].func, cst.Attribute):
        return None
    part = appended[0].args[0].value
    last = [value for target, value in map(assign, loop.body.body) if target and target == name(part)]
    shaped = last[-1] if last else part
    if name(appended[0].func.value) != parts or not isinstance(shaped, cst.Call) or _called(shaped) not in SHAPED:
        return None
    casts = [node for node in walk(loop) if isinstance(node, cst.Call) and _called(node) in CASTS]
    outside = [node for each in body if each is not loop for node in walk(each) if _called(node) in CASTS]
    back = casts and casts[-1].args and _is_of(casts[-1].args[0].value, "dtype", parameters[0], body)
    if ((casts or outside) and not back) or not _derives(body, _root(shaped), parameters[0]):
        return None
    return [], (None,) * len(shaped.args)


def _is_of(value: cst.BaseExpression | None, attribute: str, owner: str, body: Sequence[cst.BaseStatement]) -> bool:
    """Whether it is `owner.attribute`, or a name that stands for it."""
    given = [read for target, read in map(assign, body) if target and target == name(value)]
    if len(given) == 1:
        return _is_of(given[0], attribute, owner, [])
    match value:
        case cst.Attribute(value=cst.Name(value=of), attr=cst.Name(value=read)):
            return of == owner and read == attribute
    return False


def _root(value: cst.CSTNode | None) -> str:
    """The name that a chain of attributes, subscripts and calls starts with; of a function's call, its first argument's."""
    match value:
        case cst.Name(value=found):
            return found
        case cst.Call(func=cst.Attribute(value=owner)) if _root(owner) not in ("F", "torch", "nn"):
            return _root(owner)
        case cst.Call(args=[cst.Arg(value=first), *_]):
            return _root(first)
        case cst.Attribute(value=owner) | cst.Subscript(value=owner):
            return _root(owner)
    return ""


def _derives(body: Sequence[cst.BaseStatement], wanted: str, first: str) -> bool:
    """Whether everything that a name is ever given is made of the first parameter."""
    pending, seen = [wanted], set[str]()
    while pending:
        here = pending.pop()
        if here == first or here in seen:
            continue
        seen.add(here)
        found = [
            _root(value) for each in body for node in walk(each) for target, value in [assign(node)] if target == here
        ]
        found += [
            _root(part)
            for each in body
            for node in walk(each)
            if isinstance(node, cst.For)
            for part in _zipped(node, here)
        ]
        if not found:
            return False
        pending += found
    return True


def _zipped(loop: cst.For, wanted: str) -> list[cst.BaseExpression]:
    """What a loop over `zip(…)` takes a name from."""
    match loop.target, loop.iter:
        case cst.Tuple(elements=targets), cst.Call(func=cst.Name(value="zip"), args=args):
            pairs = zip(targets, args, strict=False)
            return [argument.value for target, argument in pairs if name(target.value) == wanted]
    return []
