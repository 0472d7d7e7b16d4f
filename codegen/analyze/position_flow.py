"""Which kinds of positions reach the calls that make masks in one forward, from its first statement to its last.

A name is of all the kinds that the ways to a statement give it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence

from .position_kinds import OTHER, Kind, Kinds, State, kinds_of, refined

POSITIONS = "position_ids"
_PLACE = 4
"""Of the positions among the arguments of what makes masks."""
_NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_NONE: Kinds = frozenset({Kind.NONE})


class Flow:
    """One forward. `makers` are the names of the functions that make masks."""

    def __init__(self, function: ast.FunctionDef, makers: frozenset[str]) -> None:
        self._function = function
        self._aliases = frozenset(_aliases(function, makers))
        self._makers = makers | self._aliases
        self._found: set[Kind] = set()
        self._dicts: dict[str, Kinds] = {}
        """The positions in dictionaries of arguments, by the dictionary's name."""

    def kinds(self) -> Kinds:
        """The kinds of positions that all calls which make masks are given."""
        if not self._are_called():
            return OTHER
        declared = {each.arg for each in ast.walk(self._function.args) if isinstance(each, ast.arg)}
        state: State = dict.fromkeys(declared, OTHER)
        if POSITIONS in declared:
            state = {**state, POSITIONS: frozenset({Kind.OWN, Kind.NONE})}
        self._run(self._function.body, state)
        # What is made in a lambda may be made later, when a name stands for something else.
        later = {name for node in ast.walk(self._function) if isinstance(node, ast.Lambda) for name in _direct(node)}
        stores = [node.id for node in ast.walk(self._function) if isinstance(node, ast.Name) and _is_stored(node)]
        if any(stores.count(name) for name in later):
            return OTHER
        return frozenset(self._found)

    def _are_called(self) -> bool:
        """Whether makers are only called, or chosen from by a test, so that all calls of them are seen."""
        allowed: set[int] = set()
        for node in ast.walk(self._function):
            if isinstance(node, ast.Call):
                allowed.add(id(node.func))
            elif isinstance(node, ast.Assign) and any(name in self._aliases for name in _targets(node)):
                allowed |= {id(each) for each in ast.walk(node)}
            elif isinstance(node, _NESTED) and node is not self._function:
                if any(isinstance(each, ast.Name) and each.id in self._makers for each in ast.walk(node)):
                    return False
        named = (node for node in ast.walk(self._function) if isinstance(node, ast.Name) and node.id in self._makers)
        return all(id(node) in allowed for node in named)

    def _run(self, body: Sequence[ast.stmt], state: State) -> State | None:
        """What names are after statements; None where these don't come to their end."""
        here: State | None = state
        for statement in body:
            if here is None:
                return None
            here = self._statement(statement, here)
        return here

    def _statement(self, statement: ast.stmt, state: State) -> State | None:
        match statement:
            case ast.If(test=test, body=body, orelse=orelse):
                state = self._look([test], state)
                ways = [
                    self._run(side, there) if (there := refined(state, test, truth)) is not None else None
                    for side, truth in ((body, True), (orelse, False))
                ]
                return _joined(ways)
            case ast.For() | ast.AsyncFor() | ast.While() | ast.Try() | ast.With() | ast.AsyncWith():
                state = {**state, **dict.fromkeys(_stored([statement]), OTHER)}
                self._look(_expressions(statement), state)
                self._look([each.context_expr for each in getattr(statement, "items", ())], state)
                handlers = [each.body for each in getattr(statement, "handlers", ())]
                for side in ("body", "orelse", "finalbody"):
                    self._run(getattr(statement, side, []), state)
                for handler in handlers:
                    self._run(handler, state)
                return state
            case ast.Return() | ast.Raise() | ast.Break() | ast.Continue():
                self._look(_expressions(statement), state)
                return None
            case ast.Assign(targets=[target], value=value):
                return self._bind(target, value, self._look([value], state))
            case ast.AnnAssign(target=target, value=value) if value is not None:
                return self._bind(target, value, self._look([value], state))
            case ast.AugAssign(target=ast.Name() as target, op=op, value=value):
                changed = ast.BinOp(left=ast.Name(id=target.id, ctx=ast.Load()), op=op, right=value)
                return self._bind(target, changed, self._look([value], state))
        state = self._look(_expressions(statement), state)
        return self._forget([statement], state)

    def _forget(self, roots: Sequence[ast.AST], state: State) -> State:
        """Whatever is bound there, or put in a dictionary, may be anything."""
        parts = (node.value for root in roots for node in ast.walk(root) if isinstance(node, ast.Subscript))
        names = [*_stored(roots), *(each.id for each in parts if isinstance(each, ast.Name))]
        self._dicts |= {name: OTHER for name in names if name in self._dicts}
        return {**state, **dict.fromkeys(_stored(roots), OTHER)}

    def _bind(self, target: ast.expr, value: ast.expr, state: State) -> State:
        match target:
            case ast.Name(id=name):
                given = self._given(value, state)
                if given is not None:
                    self._dicts[name] = self._dicts.get(name, frozenset()) | given
                elif name in self._dicts:
                    self._dicts[name] = OTHER
                return {**state, name: kinds_of(value, state)}
            case ast.Subscript(value=ast.Name(id=name), slice=key) if name in self._dicts:
                if not isinstance(key, ast.Constant):
                    self._dicts[name] = OTHER
                elif key.value == POSITIONS:
                    self._dicts[name] |= kinds_of(value, state)
                return state
            case ast.Tuple(elts=parts) if kinds_of(value, state) == {Kind.SIZES}:
                return {**state, **{each.id: frozenset({Kind.SCALAR}) for each in parts if isinstance(each, ast.Name)}}
        return self._forget([target], state)

    def _look(self, expressions: Iterable[ast.AST], state: State) -> State:
        """Note what the calls in expressions that make masks are given. Returns what names are after them."""
        roots = list(expressions)
        state = {**state, **dict.fromkeys(_stored(roots), OTHER)}
        for node in (each for root in roots for each in ast.walk(root)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self._makers:
                self._found |= self._positions(node, state)
        # A dictionary that is handed on otherwise may be changed.
        kept = {id(each) for root in roots for each in _read_only(root)}
        named = (node for root in roots for node in ast.walk(root) if isinstance(node, ast.Name))
        self._dicts |= {each.id: OTHER for each in named if each.id in self._dicts and id(each) not in kept}
        return state

    def _positions(self, call: ast.Call, state: State) -> Kinds:
        if any(isinstance(each, ast.Starred) for each in call.args):
            return OTHER
        found = [kinds_of(each, state) for each in call.args[_PLACE:]]
        for keyword in call.keywords:
            if keyword.arg == POSITIONS:
                found.append(kinds_of(keyword.value, state))
            elif keyword.arg is None:
                given = self._given(keyword.value, state)
                found.append(given if given is not None else OTHER)
        return frozenset().union(*found) or _NONE

    def _given(self, value: ast.expr, state: State) -> Kinds | None:
        """The positions in a dictionary of arguments; None where it isn't seen to be one."""
        match value:
            case ast.Name(id=name):
                rest = self._function.args.kwarg
                if rest is not None and name == rest.arg and POSITIONS in state:
                    return _NONE  # It would be an argument of its own.
                return self._dicts.get(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="copy"), args=[], keywords=[]):
                return self._dicts.get(name)
            case ast.Dict(keys=keys, values=values):
                found: list[Kinds | None] = []
                for key, each in zip(keys, values, strict=True):
                    if key is None:
                        found.append(self._given(each, state))
                    elif not isinstance(key, ast.Constant):
                        return None
                    elif key.value == POSITIONS:
                        found.append(kinds_of(each, state))
                known = [each for each in found if each is not None]
                return (frozenset().union(*known) or _NONE) if len(known) == len(found) else None
        return None


def _read_only(root: ast.AST) -> Iterator[ast.AST]:
    """What is read as arguments, or as part of another dictionary, or by a key."""
    for node in ast.walk(root):
        match node:
            case ast.keyword(arg=None, value=value) | ast.Subscript(value=value):
                yield value
            case ast.Attribute(value=value, attr="copy" | "get" | "items"):
                yield value
            case ast.Dict(keys=keys, values=values):
                yield from (value for key, value in zip(keys, values, strict=True) if key is None)


def _aliases(function: ast.FunctionDef, makers: frozenset[str]) -> Iterator[str]:
    """Names that are given one maker or another, and nothing else."""
    chosen = dict[str, bool]()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for name in _targets(node):
                chosen[name] = chosen.get(name, True) and _chooses(node.value, makers)
    yield from (name for name, only in chosen.items() if only)


def _chooses(value: ast.expr, makers: frozenset[str]) -> bool:
    match value:
        case ast.IfExp(body=ast.Name(id=one), orelse=ast.Name(id=other)):
            return one in makers and other in makers
        case ast.Name(id=name):
            return name in makers
    return False


def _targets(node: ast.Assign) -> list[str]:
    return [each.id for each in node.targets if isinstance(each, ast.Name)]


def _direct(node: ast.Lambda) -> Iterator[str]:
    """The names that a lambda hands over itself, not in a dictionary."""
    for call in ast.walk(node.body):
        if isinstance(call, ast.Call):
            values = [*call.args, *(each.value for each in call.keywords if each.arg is not None)]
            yield from (each.id for value in values for each in ast.walk(value) if isinstance(each, ast.Name))


def _joined(ways: Sequence[State | None]) -> State | None:
    found = [way for way in ways if way is not None]
    if not found:
        return None
    # A name that one way doesn't bind may have been bound before, or raises where it is read.
    names = dict.fromkeys(name for way in found for name in way)
    return {name: frozenset().union(*(way.get(name, frozenset()) for way in found)) for name in names}


def _expressions(statement: ast.stmt) -> list[ast.AST]:
    return [each for each in ast.iter_child_nodes(statement) if isinstance(each, ast.expr)]


def _stored(roots: Iterable[ast.AST]) -> list[str]:
    return [node.id for root in roots for node in ast.walk(root) if isinstance(node, ast.Name) and _is_stored(node)]


def _is_stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)
