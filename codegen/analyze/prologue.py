"""Prologue calls: what a forward computes from the values of its arguments through a helper that is handed its `kwargs`.

Such a helper pops its result from `kwargs` where the caller passed it (`kwargs.pop("cu_seqlens", None)`), so a forward that
calls it eagerly first, and hands the results in, is exact. Which key stands for which result is read from the helper.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

import libcst as cst

from ..facts import PrologueCall, Ref
from ..memo import remembered
from ..source import Source
from .trees import Tree, walk


def prologue(source: Source, tree: Tree, arguments: frozenset[str]) -> tuple[PrologueCall, ...]:
    """The calls at the top level of a forward that can be hoisted, in order.

    A call can be hoisted when its helper's keys are known and its arguments use nothing but `arguments` (the forward's own
    parameters, as they came in), `self`, module-level names, and what earlier prologue calls computed. Nothing is hoisted
    past a statement that may end the forward, change `kwargs`, or change a tensor in place.
    """
    if "kwargs=kwargs" not in tree.text:
        return ()
    method = tree.method
    known = set(arguments) | {"self", "kwargs"}
    bound = assigned(method)
    found: list[PrologueCall] = []
    for statement in method.body.body:
        call = _handed_call(statement)
        if call is None:
            if is_barrier(statement):
                break
            continue
        keys, helper = _keys(source, tree.ref.file, call)
        reads = _names(call)
        targets = _targets(statement, call, keys)
        if helper is None or not targets or any(name in bound and name not in known for name in reads):
            continue
        if any(name in assigned_before(method, statement) - {t for c in found for t in c.targets} for name in reads):
            continue
        known.update(targets)
        found.append(
            PrologueCall(
                targets=targets,
                keys=keys,
                helper=helper,
                text=f"{', '.join(targets)} = {tree.code(call)}",
                reads=tuple(sorted(reads)),
                first_line=tree.first_line(statement),
                last_line=tree.last_line(statement),
                span=tree.span(statement),
                helper_span=source.span(helper),
            )
        )
    return tuple(found)


def prologue_only(tree: Tree, calls: tuple[PrologueCall, ...], unread: Sequence[cst.CSTNode] = ()) -> tuple[str, ...]:
    """The names that prologue calls read and that no other statement of the forward uses, but for the nodes `unread`."""
    hoisted = {call.first_line for call in calls if not call.within}
    passed = {id(node) for node in unread}
    elsewhere: set[str] = set()
    for statement in tree.method.body.body if calls else ():
        if tree.first_line(statement) not in hoisted:
            elsewhere.update(
                node.value for node in walk(statement) if isinstance(node, cst.Name) and id(node) not in passed
            )
    read = dict.fromkeys(name for call in calls for name in call.reads)
    targets = {target for call in calls for target in call.targets}
    return tuple(name for name in read if name not in elsewhere | targets and name != "self")


def _handed_call(statement: cst.BaseStatement | cst.BaseSmallStatement) -> cst.Call | None:
    """The call handed `kwargs=kwargs` in a simple top-level statement."""
    if not isinstance(statement, cst.SimpleStatementLine):
        return None
    handed = [node for node in walk(statement) if isinstance(node, cst.Call) and any(map(_is_handed, node.args))]
    return handed[0] if len(handed) == 1 else None


def is_barrier(statement: cst.CSTNode) -> bool:
    """Whether a call after the statement can't be moved before it."""
    for node in walk(statement):
        match node:
            case cst.Return() | cst.Raise() | cst.Del():
                return True
            case cst.AssignTarget(target=cst.Subscript(value=cst.Name(value="kwargs"))):
                return True
            case cst.Call(func=cst.Attribute(value=cst.Name(value="kwargs"), attr=cst.Name(value=name))):
                if name != "get":
                    return True
            case cst.Call(func=cst.Attribute(attr=cst.Name(value=name))):
                # PyTorch's convention for methods that work in place.
                if name.endswith("_") and not name.startswith("_"):
                    return True
    return False


def _is_handed(argument: cst.Arg) -> bool:
    """Whether the argument is `kwargs=kwargs`."""
    match argument:
        case cst.Arg(keyword=cst.Name(value="kwargs"), value=cst.Name(value="kwargs")):
            return True
    return False


def _targets(
    statement: cst.BaseStatement | cst.BaseSmallStatement, call: cst.Call, keys: tuple[str, ...]
) -> tuple[str, ...]:
    """The names for the results: those that the statement assigns, or the keys where the call is part of an expression."""
    assert isinstance(statement, cst.SimpleStatementLine)
    assign = statement.body[0]
    if isinstance(assign, cst.Assign) and assign.value is call and len(assign.targets) == 1:
        target = assign.targets[0].target
        elements = [element.value for element in target.elements] if isinstance(target, cst.Tuple) else [target]
        names = [element.value for element in elements if isinstance(element, cst.Name)]
        return tuple(names) if len(names) == len(elements) == len(keys) else ()
    return keys if len(keys) == 1 else ()


def _names(call: cst.Call) -> set[str]:
    """The local names that the call's arguments read, `kwargs` left out."""
    tree = ast.parse(cst.Module(body=()).code_for_node(call), mode="eval")
    assert isinstance(tree.body, ast.Call)
    values = [*tree.body.args, *(keyword.value for keyword in tree.body.keywords)]
    names = {node.id for value in values for node in ast.walk(value) if isinstance(node, ast.Name)}
    return names - {"kwargs"}


def assigned(method: cst.FunctionDef) -> set[str]:
    return {name for statement in method.body.body for name in _assigns(statement)}


def assigned_before(method: cst.FunctionDef, stop: cst.CSTNode) -> set[str]:
    names: set[str] = set()
    for statement in method.body.body:
        if statement is stop:
            break
        names |= _assigns(statement)
    return names


def _assigns(statement: cst.CSTNode) -> set[str]:
    """Every name that is bound anywhere in a statement."""
    bound: set[str] = set()
    for node in walk(statement):
        match node:
            case (
                cst.AssignTarget(target=target)
                | cst.AnnAssign(target=target)
                | cst.AugAssign(target=target)
                | cst.NamedExpr(target=target)
                | cst.For(target=target)
            ):
                bound.update(name.value for name in walk(target) if isinstance(name, cst.Name))
    return bound


def _keys(source: Source, file: str, call: cst.Call) -> tuple[tuple[str, ...], Ref | None]:
    """The keys of `kwargs` that stand for the results of a helper call, and the helper."""
    if not isinstance(call.func, cst.Name):
        return (), None
    helper = source.resolve(call.func.value, source.file(file))
    if helper is None:
        return (), None
    given = {
        argument.keyword.value: argument.value.evaluated_value
        for argument in call.args
        if argument.keyword is not None and isinstance(argument.value, cst.SimpleString)
    }
    keys = popped_keys(source, helper, tuple(sorted((name, str(value)) for name, value in given.items())))
    return (keys, helper) if keys else ((), None)


@remembered
def helper_chain(source: Source, helper: Ref) -> tuple[Ref, ...]:
    """A helper and the further helpers that it hands its `kwargs` to."""
    found: dict[Ref, None] = {}
    pending = [helper]
    while pending:
        ref = pending.pop(0)
        if ref in found:
            continue
        found[ref] = None
        for node in ast.walk(source.definition(ref).node):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if any(keyword.arg == "kwargs" for keyword in node.keywords):
                    further = source.resolve(node.func.id, source.file(ref.file))
                    pending += [further] if further is not None else []
    return tuple(found)


@remembered
def popped_keys(source: Source, helper: Ref, given: tuple[tuple[str, str], ...] = ()) -> tuple[str, ...]:
    """The keys under which `helper` accepts its results, in the order in which it returns them; empty where that isn't clear.

    `given` are the string arguments of the call: a helper may take the key itself as a parameter.
    """
    definition = source.definition(helper)
    if not isinstance(definition.node, ast.FunctionDef):
        return ()
    node = definition.node
    strings = _string_defaults(node) | dict(given)
    popped: dict[str, tuple[str, ...]] = {}
    for inner in ast.walk(node):
        match inner:
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                popped[name] = _popped(source, helper, value, strings)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name not in popped or not popped[name]:
                popped[name] = _popped(source, helper, value, strings)
            case ast.Assign(targets=[ast.Tuple(elts=elements)], value=value):
                keys = _popped(source, helper, value, strings)
                if len(keys) == len(elements):
                    popped.update({n.id: (k,) for n, k in zip(elements, keys, strict=True) if isinstance(n, ast.Name)})
    for inner in ast.walk(node):
        if isinstance(inner, ast.Return) and inner.value is not None:
            elements = inner.value.elts if isinstance(inner.value, ast.Tuple) else [inner.value]
            names = [element.id for element in elements if isinstance(element, ast.Name)]
            keys = tuple(key for name in names for key in popped.get(name, ()))
            if keys and len(keys) == len(elements):
                return keys
    return ()


def _popped(source: Source, helper: Ref, value: ast.expr, strings: dict[str, str]) -> tuple[str, ...]:
    """The keys that an expression takes from `kwargs`: `kwargs.pop(key, None)`, or a further helper handed `kwargs`."""
    if not isinstance(value, ast.Call):
        return ()
    match value.func:
        case ast.Attribute(value=ast.Name(id="kwargs"), attr="pop"):
            match value.args[0]:
                case ast.Constant(value=str(key)):
                    return (key,)
                case ast.Name(id=name) if name in strings:
                    return (strings[name],)
        case ast.Name(id=name) if any(keyword.arg == "kwargs" for keyword in value.keywords):
            further = source.resolve(name, source.file(helper.file))
            return popped_keys(source, further) if further is not None else ()
    return ()


def _string_defaults(node: ast.FunctionDef) -> dict[str, str]:
    arguments = [*node.args.posonlyargs, *node.args.args]
    defaults = node.args.defaults
    pairs = list(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True))
    pairs += [(a, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None]
    return {a.arg: d.value for a, d in pairs if isinstance(d, ast.Constant) and isinstance(d.value, str)}
