"""Layers that a stack leaves out at random in training:

    for layer in self.layers:
        if self.training and self.layerdrop > 0.0:
            dropout_probability = torch.rand([])
            if dropout_probability < self.layerdrop:
                continue
        hidden_states = layer(hidden_states, …)

The number is drawn between those of the layers' own dropouts, and whether a layer runs depends on it: no graph of the stack can do
that exactly, but each layer is a graph of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import libcst as cst

from .segments import assign, name
from .trees import Tree, walk

DRAWS = frozenset({"bernoulli", "rand", "rand_like", "randint", "random", "uniform", "uniform_"})
"""The last names of what draws a number: of torch, of numpy, or of Python."""
TRAINING = "self.training"

_CONSTANTS = frozenset({"None", "True", "False"})
_KNOWN = (
    cst.Attribute,
    cst.BaseCompOp,
    cst.BaseBooleanOp,
    cst.BaseUnaryOp,
    cst.BooleanOperation,
    cst.Comparison,
    cst.ComparisonTarget,
    cst.Dot,
    cst.Float,
    cst.Integer,
    cst.Name,
    cst.SimpleString,
    cst.UnaryOperation,
)

_Conditions = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDrop:
    """A loop over layers with such a choice.

    Attributes:
        loop: The statement.
        lists: The attributes of `self` that hold the layers.
        conditions: What is true of the module wherever a choice is made, as source text that reads `self` alone.
        branches: The choices.
    """

    loop: cst.For
    lists: tuple[str, ...]
    conditions: _Conditions
    branches: tuple[cst.If, ...]


def find(tree: Tree) -> LayerDrop | None:
    """The first loop of a method whose choices are made in training only."""
    if TRAINING not in tree.text or not any(f"{draw}(" in tree.text for draw in DRAWS):
        return None
    for loop in walk(tree.method):
        lists = _lists(loop) if isinstance(loop, cst.For) else ()
        if not isinstance(loop, cst.For) or not lists:
            continue
        choices = _Choices(tree)
        choices.block(loop.body.body, ())
        if choices.found:
            conditions = _common(each for _, each in choices.found)
            if TRAINING in conditions:
                branches = tuple(branch for branch, _ in choices.found)
                return LayerDrop(loop=loop, lists=lists, conditions=conditions, branches=branches)
    return None


def _lists(loop: cst.For) -> tuple[str, ...]:
    """The attributes of `self` whose modules a loop calls: what it runs through (`for layer in self.layers`, in any dress), or
    what it takes one of (`self.layers[i](…)`)."""
    targets = {each.value for each in walk(loop.target) if isinstance(each, cst.Name)}
    found: dict[str, None] = {}
    for node in walk(loop.body):
        match node:
            case cst.Call(func=cst.Name(value=called)) if called in targets:
                found |= dict.fromkeys(_own(loop.iter))
            case cst.Call(func=cst.Subscript(value=cst.Attribute(value=cst.Name(value="self"), attr=attribute))):
                found[attribute.value] = None
    return tuple(found)


def _own(expression: cst.BaseExpression) -> Iterator[str]:
    for node in walk(expression):
        match node:
            case cst.Attribute(value=cst.Name(value="self"), attr=cst.Name(value=attribute)):
                yield attribute


class _Choices:
    """Follows names that hold something random through the body of a loop, and collects the branches on them."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.random: dict[str, _Conditions] = {}
        self.found: list[tuple[cst.If, _Conditions]] = []

    def block(self, body: Sequence[cst.BaseStatement | cst.BaseSmallStatement], under: _Conditions) -> None:
        for statement in body:
            target, value = assign(statement)
            if target and value is not None:
                conditions = self._random(value)
                if conditions is not None:
                    known = self.random.get(target)
                    made = (*under, *conditions)
                    self.random[target] = made if known is None else _common((known, made))
            elif isinstance(statement, cst.If):
                self._branch(statement, under)
            elif isinstance(statement, cst.For | cst.While | cst.With):
                self.block(statement.body.body, under)

    def _branch(self, branch: cst.If, under: _Conditions) -> None:
        conditions = self._random(branch.test)
        if conditions is not None:
            self.found.append((branch, tuple(dict.fromkeys((*under, *conditions)))))
        self.block(branch.body.body, (*under, *self._true(branch.test)))
        otherwise = (*under, *self._false(branch.test))
        if isinstance(branch.orelse, cst.If):
            self._branch(branch.orelse, otherwise)
        elif branch.orelse is not None:
            self.block(branch.orelse.body.body, otherwise)

    def _random(self, value: cst.CSTNode) -> _Conditions | None:
        """Under which conditions a value is random, None where it never is."""
        match value:
            case cst.Name(value=read):
                return self.random.get(read)
            case cst.Call(func=cst.Name(value=drawn) | cst.Attribute(attr=cst.Name(value=drawn))) if drawn in DRAWS:
                return ()
            case cst.BooleanOperation(left=left, operator=operator, right=right):
                before = self._random(left)
                after = self._random(right) if before is None else None
                if after is not None:
                    reached = self._true(left) if isinstance(operator, cst.And) else self._false(left)
                    return (*reached, *after)
                return before
            case cst.IfExp(test=test, body=body, orelse=orelse) if self._random(test) is None:
                ways = ((self._true(test), self._random(body)), (self._false(test), self._random(orelse)))
                chosen = [(*reached, *each) for reached, each in ways if each is not None]
                return _common(chosen) if chosen else None
        found = [each for each in map(self._random, value.children) if each is not None]
        return _common(found) if found else None

    def _true(self, test: cst.BaseExpression) -> _Conditions:
        """What is true of the module where a test came out true."""
        if isinstance(test, cst.BooleanOperation) and isinstance(test.operator, cst.And):
            return (*self._true(test.left), *self._true(test.right))
        return (self._text(test),) if _is_known(test) else ()

    def _false(self, test: cst.BaseExpression) -> _Conditions:
        """What is true of the module where a test came out false."""
        match test:
            case cst.BooleanOperation(left=left, operator=cst.Or(), right=right):
                return (*self._false(left), *self._false(right))
            case cst.UnaryOperation(operator=cst.Not(), expression=expression):
                return self._true(expression)
        return (f"not ({self._text(test)})",) if _is_known(test) else ()

    def _text(self, test: cst.BaseExpression) -> str:
        bare = test.with_changes(lpar=(), rpar=())
        text = " ".join(self.tree.code(bare).split())
        return f"({text})" if isinstance(test, cst.BooleanOperation) else text


def _is_known(test: cst.BaseExpression) -> bool:
    """Whether a test asks for nothing but attributes of `self`: then it can be asked before the forward runs."""
    attributes = {id(each.attr) for each in walk(test) if isinstance(each, cst.Attribute)}
    free = (each for each in walk(test) if isinstance(each, cst.Name) and id(each) not in attributes)
    is_own = all(each.value == "self" or each.value in _CONSTANTS for each in free)
    return is_own and all(isinstance(each, _KNOWN) for each in walk(test)) and name(test) != "self"


def _common(conditions: Iterable[_Conditions]) -> _Conditions:
    """What holds in every case: by fewer conditions a region runs by its layers more often, which is exact too."""
    first, *others = conditions
    return tuple(each for each in dict.fromkeys(first) if all(each in other for other in others))
