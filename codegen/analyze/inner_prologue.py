"""Prologue calls of the modules inside: a forward that hands a child its `kwargs` hands it results, too.

    hidden_states = self.embeddings(pixel_values, grid_thw=grid_thw, **kwargs)

So a call in the child's forward is hoisted out of this one where it computes from what came in here: `grid_thw`, and `self` in the
child is `self.embeddings` here. The child takes the result from a copy of `kwargs`, which everything else that is handed `kwargs`
gets as well: nothing of that may know the key.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import libcst as cst

from ..facts import ChildKind, PrologueCall, Ref
from ..files import COPY
from ..memo import remembered
from ..source import PACKAGE
from .classes import Classes
from .composition import children
from .prologue import assigned, assigned_before, helper_chain, is_barrier, popped_keys, prologue, prologue_only
from .trees import Tree, Trees, walk

_MADE_ONCE = (ChildKind.DIRECT, ChildKind.FROM_CONFIG)

ATTENTION = "ALL_ATTENTION_FUNCTIONS"
ATTENTION_READS = "position_ids"
"""The key that flash attention takes from whatever is handed on to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hoistable:
    """The prologue calls of a forward, its own and those of the modules inside, and the parameters that nothing else reads."""

    calls: tuple[PrologueCall, ...] = ()
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Handed:
    """The call of a child that is handed `kwargs`: `given` is the source text of what its parameters get."""

    statement: cst.CSTNode
    call: cst.Call
    part: str
    ref: Ref
    given: Mapping[str, str]


@remembered
def hoistable(classes: Classes, trees: Trees, ref: Ref) -> Hoistable:
    """What can be hoisted out of the forward of `ref`."""
    found = classes.method(ref, "forward")
    if found is None:
        return Hoistable()
    owner, node = found
    tree = trees.method(owner, "forward")
    arguments = frozenset(each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
    own = prologue(classes.source, tree, arguments - {"self"})
    if node.args.kwarg is None or node.args.kwarg.arg != "kwargs" or "**kwargs" not in tree.text.partition(":\n")[2]:
        return Hoistable(calls=own, only=prologue_only(tree, own))
    lifted: list[PrologueCall] = []
    unread: list[cst.CSTNode] = []
    taken = assigned(tree.method) | arguments | {key for call in own for key in (*call.targets, *call.keys)}
    for handed in _handed(classes, trees, ref, tree, node):
        inner = hoistable(classes, trees, handed.ref)
        more = [] if _is_known(classes, trees, ref, tree, handed, inner) else _lift(inner, handed, taken)
        lifted += more
        taken |= {target for call in more for target in call.targets}
        if len(more) == len(inner.calls):
            given = [each for each in handed.call.args if _parameter(classes, handed, each) in inner.only]
            unread += [part for each in given for part in (each.keyword, each.value) if part is not None]
    calls = (*own, *lifted)
    return Hoistable(calls=calls, only=prologue_only(tree, calls, unread))


def _handed(classes: Classes, trees: Trees, ref: Ref, tree: Tree, node: ast.FunctionDef) -> Iterator[_Handed]:
    """The calls of children that a forward hands its `kwargs` to, in every run and before anything that could end it."""
    made = children(classes, trees, ref)
    parts = {
        child.attribute: child.target
        for child in made
        if child.target is not None and child.kind in _MADE_ONCE and not child.repeated and not child.conditional
    }
    arguments = {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
    for statement in tree.method.body.body:
        for call in walk(statement) if isinstance(statement, cst.SimpleStatementLine) else ():
            match call:
                case cst.Call(func=cst.Attribute(value=cst.Name(value="self"), attr=cst.Name(value=part))):
                    target = parts.get(part)
                    if target is not None and any(_is_rest(each) for each in call.args):
                        known = arguments - assigned_before(tree.method, statement)
                        given = _given(classes, tree, call, target, known)
                        yield _Handed(statement=statement, call=call, part=part, ref=target, given=given)
        if is_barrier(statement):
            return


def _is_rest(argument: cst.Arg) -> bool:
    """Whether the argument is `**kwargs`."""
    return argument.star == "**" and isinstance(argument.value, cst.Name) and argument.value.value == "kwargs"


def _given(classes: Classes, tree: Tree, call: cst.Call, target: Ref, known: set[str]) -> dict[str, str]:
    """What the parameters of a child's forward are given, as far as it is an argument of this one, an attribute or a constant."""
    found = classes.method(target, "forward")
    if found is None or found[1].args.kwarg is None or found[1].args.kwarg.arg != "kwargs":
        return {}
    declared = found[1].args
    defaults = zip(reversed(declared.args), reversed(declared.defaults), strict=False)
    given = {each.arg: ast.unparse(default) for each, default in defaults if isinstance(default, ast.Constant)}
    for position, argument in enumerate(call.args):
        if argument.star == "*":
            return {}
        name = _name(declared, position, argument)
        if name is None:
            continue
        given.pop(name, None)
        text = tree.code(argument.value)
        nodes = list(ast.walk(ast.parse(text, mode="eval").body))
        plain = all(isinstance(node, ast.Name | ast.Attribute | ast.Constant | ast.Load) for node in nodes)
        if plain and all(node.id in known for node in nodes if isinstance(node, ast.Name)):
            given[name] = text
    return given


def _name(declared: ast.arguments, position: int, argument: cst.Arg) -> str | None:
    """The parameter that an argument stands for."""
    if argument.star:
        return None
    if argument.keyword is not None:
        return argument.keyword.value
    return declared.args[position + 1].arg if position + 1 < len(declared.args) else None


def _parameter(classes: Classes, handed: _Handed, argument: cst.Arg) -> str | None:
    found = classes.method(handed.ref, "forward")
    position = list(handed.call.args).index(argument)
    return _name(found[1].args, position, argument) if found is not None else None


def _lift(inner: Hoistable, handed: _Handed, taken: set[str]) -> list[PrologueCall]:
    """The calls of a child's forward that can be made here instead, in this forward's names; each result is named by its key."""
    names: dict[str, str] = {**handed.given, "self": f"self.{handed.part}"}
    found: list[PrologueCall] = []
    for call in inner.calls:
        if any(name not in names for name in call.reads) or set(call.keys) & taken:
            continue
        names |= zip(call.targets, call.keys, strict=True)
        value = ast.parse(call.text.partition(" = ")[2], mode="eval").body
        placed = _Place(names).visit(value)
        reads = {node.id for node in ast.walk(placed) if isinstance(node, ast.Name)} & _roots(names, call.reads)
        found.append(
            replace(
                call,
                targets=call.keys,
                text=f"{', '.join(call.keys)} = {ast.unparse(placed)}",
                reads=tuple(sorted(reads)),
                within=f"{handed.part}.{call.within}".rstrip("."),
                through=(handed.ref, *call.through),
            )
        )
    return found


def _roots(names: Mapping[str, str], reads: tuple[str, ...]) -> set[str]:
    """The names that stand in what was put in the place of these."""
    nodes = (node for name in reads for node in ast.walk(ast.parse(names[name], mode="eval")))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


class _Place(ast.NodeTransformer):
    """Puts expressions in the place of names."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.parse(self.names[node.id], mode="eval").body if node.id in self.names else node


def _is_known(classes: Classes, trees: Trees, ref: Ref, tree: Tree, handed: _Handed, inner: Hoistable) -> bool:
    """Whether anything but the child, of all that may be handed `kwargs`, knows one of the keys."""
    keys = {key for call in inner.calls for key in call.keys}
    others = [child for child in children(classes, trees, ref) if child.attribute != handed.part] if keys else []
    if any(child.target is None and child.kind.by_config for child in others):
        return True
    reached: dict[Ref, None] = {}
    pending = [child.target for child in others if child.target is not None]
    while pending:
        here = pending.pop()
        if here not in reached:
            reached[here] = None
            pending += [each.target for each in children(classes, trees, here) if each.target is not None]
    owners = dict.fromkeys(owner for other in reached for owner in classes.mro(other))
    nodes: list[tuple[str, ast.stmt]] = [
        (owner.file, node) for owner in owners if (node := classes.node(owner)) is not None
    ]
    nodes += [
        (tree.ref.file, statement)
        for statement, placed in zip(tree.node.body, tree.method.body.body, strict=True)
        if placed is not handed.statement and "kwargs" in tree.code(placed)
    ]
    own = [(owner, classes.node(owner)) for owner in classes.mro(ref)]
    nodes += [
        (owner.file, each)
        for owner, node in own
        for each in (node.body if node is not None else ())
        if isinstance(each, ast.FunctionDef)
        and each.name not in ("__init__", "forward")
        and "kwargs" in ast.unparse(each)
    ]
    return any(_knows(classes, file, node, keys) for file, node in nodes)


def _knows(classes: Classes, file: str, code: ast.AST, keys: set[str]) -> bool:
    """Whether code has one of the keys as a parameter, an argument or a string, or calls a function that takes it."""
    for node in ast.walk(code):
        match node:
            case ast.arg(arg=name) | ast.keyword(arg=name) | ast.Constant(value=str(name)) if name in keys:
                return True
            case ast.Name(id=name) if name == ATTENTION and ATTENTION_READS in keys:
                return True
            case ast.Call(func=ast.Name(id=name), keywords=given) if any(map(_is_handed_on, given)):
                if _takes(classes, file, name, keys):
                    return True
    return False


def _is_handed_on(keyword: ast.keyword) -> bool:
    """Whether it is `kwargs=kwargs` or `**kwargs`."""
    return keyword.arg in (None, "kwargs") and isinstance(keyword.value, ast.Name) and keyword.value.id == "kwargs"


def _takes(classes: Classes, file: str, name: str, keys: set[str]) -> bool:
    """Whether a function of Transformers takes one of the keys, as an argument or out of `kwargs`. A local name is a module or an
    attention interface, which are looked at as such; other libraries know none."""
    source = classes.source
    function = source.resolve(name, source.file(file))
    if function is None:
        imported = source.file(file).imports.get(name)
        return imported is not None and imported.module.startswith((PACKAGE, COPY))
    taken = {key for each in helper_chain(source, function) for key in popped_keys(source, each)}
    node = source.definition(function).node
    return bool(keys & (taken | {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}))
