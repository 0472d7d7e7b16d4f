"""The expressions of a function: what kind of value each is, and the hazards in evaluating it.

What breaks a graph was tried with torch 2.13 under `fullgraph=True`: a number read from a tensor becomes a symbol, and a shape
that depends on values a symbolic size; they are traced. What breaks is to branch on one, to loop as often as one says, or to
hand a tensor of such a size to code that branches on sizes, as attention does.
"""

from __future__ import annotations

import ast
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from ..facts import HazardKind, HazardLevel
from .calls import CallRules
from .conditions import ERROR, WARNING, cap_when, lower
from .kinds import HAS_UNKNOWN_SIZE, IS_TENSOR, MOVE_ROWS, Kind, dotted, element, join, many

INTERFACES = ("ATTENTION_FUNCTIONS", "attention_forward")
"""How the names end that an attention interface is taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A hazard, wherever the function is called from."""

    kind: HazardKind
    level: HazardLevel
    message: str
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """A call that may lead to another function of Transformers: `path` is what stands before the parenthesis."""

    path: tuple[str, ...]
    cap: HazardLevel
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """`handed_on` are hazards where the child of that attribute attends, `attends` says whether this function does."""

    hazards: tuple[Found, ...]
    calls: tuple[Called, ...]
    handed_on: tuple[tuple[str, Found], ...]
    attends: bool


class Expressions(CallRules):
    def __init__(self, optional: frozenset[str], methods: frozenset[str]) -> None:
        self.optional = optional
        self.methods = methods
        self.names: dict[str, Kind] = {}
        self.capped: dict[str, HazardLevel] = {}
        """Names that are what they are in some uses only, and the most that a hazard with one can be."""
        self.interfaces: set[str] = set()
        self.saw_interface = False
        self.modules: dict[str, str] = {}
        self.own: set[str] = set()
        self.handed: list[tuple[str, Found]] = []
        self.hazards: list[Found] = []
        self.calls: list[Called] = []
        self.cap = ERROR
        self.depth = 0

    def found(self, kind: HazardKind, node: ast.expr, message: str, level: HazardLevel) -> None:
        used = (each.id for each in ast.walk(node) if isinstance(each, ast.Name) and each.id in self.capped)
        level = lower(level, self.cap, *(self.capped[name] for name in used))
        self.hazards.append(Found(kind=kind, level=level, message=message, line=node.lineno, column=node.col_offset))

    def handed_on(self, child: str, node: ast.expr) -> None:
        text = f"`{short(node)}` gets tensors of sizes that depend on values, and attention in it branches on sizes"
        self.found(HazardKind.DATA_BRANCH, node, text, ERROR)
        self.handed.append((child, self.hazards.pop()))

    def called(self, path: tuple[str, ...], node: ast.expr, cap: HazardLevel = ERROR) -> None:
        self.calls.append(Called(path=path, cap=lower(self.cap, cap), line=node.lineno))

    def under(self, cap: HazardLevel, work: Callable[[], Kind]) -> Kind:
        outer, self.cap = self.cap, lower(self.cap, cap)
        kind = work()
        self.cap = outer
        return kind

    def branch(self, node: ast.expr, what: str) -> None:
        message = f"`{short(node)}` decides {what} by the values of a tensor"
        self.found(HazardKind.DATA_BRANCH, node, message, ERROR)

    def test(self, node: ast.expr, what: str) -> None:
        """An expression whose truth is asked for."""
        match node:
            case ast.BoolOp(op=op, values=values):
                outer = self.cap
                for value in values:
                    self.test(value, what)
                    self.cap = lower(self.cap, cap_when(value, isinstance(op, ast.And), self.optional))
                self.cap = outer
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.test(operand, what)
            case _:
                kind = self.eval(node)
                if isinstance(node, ast.Name) and node.id in self.optional:
                    self.under(WARNING, lambda: self._truth(node, kind, what))
                else:
                    self._truth(node, kind, what)

    def _truth(self, node: ast.expr, kind: Kind, what: str) -> Kind:
        if kind in IS_TENSOR or (kind is Kind.READ and not isinstance(node, ast.Name)):
            self.branch(node, what)
        return kind

    def iterate(self, node: ast.expr) -> Kind | tuple[Kind, ...]:
        """What each turn of a loop over `node` gets: for a tuple target, the kinds of its entries."""
        match node:
            case ast.Call(func=ast.Name(id="zip"), args=[ast.Starred(value=value)]):
                return element(self.eval(value))
            case ast.Call(func=ast.Name(id="zip"), args=parts):
                kinds = [self.iterate(part) for part in parts]
                return tuple(kind if isinstance(kind, Kind) else join(kind) for kind in kinds)
            case ast.Call(func=ast.Name(id="enumerate"), args=[part, *_]):
                kind = self.iterate(part)
                return (Kind.PLAIN, kind if isinstance(kind, Kind) else join(kind))
        kind = self.eval(node)
        if kind in HAS_UNKNOWN_SIZE:
            message = f"the loop over `{short(node)}` runs as often as the values of a tensor say"
            self.found(HazardKind.DATA_LOOP, node, message, ERROR)
        elif kind in IS_TENSOR:
            message = f"the loop over `{short(node)}` is unrolled: each length of the tensor recompiles"
            self.found(HazardKind.DATA_LOOP, node, message, WARNING)
        return element(kind)

    def eval(self, node: ast.expr) -> Kind:
        """The kind of an expression; its hazards are noted on the way."""
        match node:
            case ast.Constant():
                return Kind.PLAIN
            case ast.Name(id=name):
                if name.endswith(INTERFACES):
                    self.saw_interface = True
                return self.names.get(name, Kind.UNKNOWN)
            case ast.Attribute(value=value, attr=attribute):
                return self._attribute(self.eval(value), attribute)
            case ast.Call():
                return self.call(node)
            case ast.Subscript():
                return self._subscript(node)
            case ast.BinOp(left=left, op=op, right=right):
                kinds = (self.eval(left), self.eval(right))
                is_logic = isinstance(op, ast.BitAnd | ast.BitOr | ast.BitXor)
                # Text and lists are added to as well; what is a tensor says so on one side.
                kind = join(kinds)
                return Kind.TENSOR if kind is Kind.MASK and not is_logic else kind
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.test(operand, "the result")
                return Kind.PLAIN
            case ast.UnaryOp(operand=operand):
                return self.eval(operand)
            case ast.Compare():
                return self._compare(node)
            case ast.BoolOp(values=values):
                self.test(ast.copy_location(ast.BoolOp(op=node.op, values=values[:-1]), node), "the result")
                outer = self.cap
                for value in values[:-1]:
                    self.cap = lower(self.cap, cap_when(value, isinstance(node.op, ast.And), self.optional))
                kind = self.eval(values[-1])
                self.cap = outer
                return kind
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.test(test, "the result")
                first = self.under(cap_when(test, True, self.optional), lambda: self.eval(body))
                return join((first, self.under(cap_when(test, False, self.optional), lambda: self.eval(orelse))))
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                self.names[name] = self.eval(value)
                return self.names[name]
            case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
                kind = join([self.eval(each) for each in elements])
                return many(kind)
            case ast.ListComp(elt=elt, generators=generators) | ast.GeneratorExp(elt=elt, generators=generators):
                return self._comprehension(elt, generators)
            case ast.SetComp(elt=elt, generators=generators):
                return self._comprehension(elt, generators)
            case ast.Starred(value=value):
                return self.eval(value)
            case ast.Lambda():
                return Kind.UNKNOWN
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self.eval(child)
                return Kind.UNKNOWN

    def _comprehension(self, elt: ast.expr, generators: list[ast.comprehension]) -> Kind:
        outer = dict(self.names)
        for generator in generators:
            self.bind_each(generator.target, self.iterate(generator.iter))
            for condition in generator.ifs:
                self.test(condition, "which entries count")
        kind = many(self.eval(elt))
        self.names = outer
        return kind

    @abstractmethod
    def bind_each(self, target: ast.expr, kinds: Kind | tuple[Kind, ...]) -> None: ...

    def _attribute(self, kind: Kind, attribute: str) -> Kind:
        match kind:
            case Kind.PICKED if attribute in MOVE_ROWS:
                return Kind.RAGGED
            case Kind.TENSOR | Kind.MASK | Kind.PICKED | Kind.RAGGED:
                return kind if attribute in {"T", "mT", "H", "data", "real", "imag"} else Kind.PLAIN
            case Kind.TENSORS if attribute in {"values", "indices"}:
                return Kind.TENSOR
        return Kind.UNKNOWN

    def _compare(self, node: ast.Compare) -> Kind:
        kinds = [self.eval(each) for each in (node.left, *node.comparators)]
        if all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            return Kind.PLAIN
        kind = join(kinds)
        if isinstance(node.ops[0], ast.In | ast.NotIn):
            return kind if kinds[1] in IS_TENSOR else Kind.PLAIN
        if kind in (Kind.TENSORS, Kind.RAGGEDS):
            return Kind.PLAIN
        return Kind.MASK if kind in (Kind.TENSOR, Kind.MASK) else kind

    def _subscript(self, node: ast.Subscript) -> Kind:
        match node.value, node.slice:
            case ast.Attribute(value=owner, attr="shape"), ast.Constant(value=0):
                # The size that depends on values is nearly always the first.
                return Kind.READ if self.eval(owner) in HAS_UNKNOWN_SIZE else Kind.PLAIN
        value = self.eval(node.value)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        sliced = any(isinstance(part, ast.Slice) for part in parts)
        if value is Kind.UNKNOWN and isinstance(node.slice, ast.Tuple) and sliced:
            value = Kind.TENSOR  # Lists and dicts take no such index.
        index = join([self._bounds(part) if isinstance(part, ast.Slice) else self.eval(part) for part in parts])
        compares = any(isinstance(part, ast.Compare) for part in parts)
        is_mask = index is Kind.MASK or (index in HAS_UNKNOWN_SIZE and compares)
        if is_mask and value in IS_TENSOR | {Kind.UNKNOWN}:
            message = f"`{short(node)}` picks by a mask: its shape depends on values"
            self.found(HazardKind.MASK_INDEX, node, message, WARNING)
            return Kind.RAGGED if len(parts) > 1 else Kind.PICKED
        match value:
            case Kind.TENSOR | Kind.MASK | Kind.PICKED | Kind.RAGGED:
                return join((index, value)) if index in HAS_UNKNOWN_SIZE else value
            case Kind.TENSORS | Kind.RAGGEDS:
                return value if sliced else element(value)
        return value

    def _bounds(self, part: ast.Slice) -> Kind:
        """A slice: ragged where a bound is a number read from a tensor."""
        kind = join([self.eval(bound) for bound in (part.lower, part.upper, part.step) if bound is not None])
        if kind in IS_TENSOR:
            bound = next(each for each in (part.upper, part.lower, part.step) if each is not None)
            message = f"a slice by `{short(bound)}` reads a tensor's values"
            self.found(HazardKind.HOST_READ, bound, message, WARNING)
        return Kind.RAGGED if kind in IS_TENSOR | {Kind.READ} else Kind.PLAIN

    def path(self, node: ast.expr) -> str:
        return dotted(node)


def short(node: ast.expr) -> str:
    """Source text, cut where it's long."""
    text = ast.unparse(node)
    return text if len(text) <= 72 else f"{text[:70]}…"
