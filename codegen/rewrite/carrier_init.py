"""The `__init__` of a carrier, or another method that makes children: upstream's body, making generated ones.

Zero-argument `super()` becomes explicit, so that upstream's own method, whose body this is, doesn't run as well. What
Transformers' tables choose by the config (`AutoModel.from_config(…)`, `load_backbone(…)`) goes through the runtime, which
knows the generated classes of other packages; so does the call of another model's class where the plan says so. A table of
classes that has a generated one is written out with it.
"""

from __future__ import annotations

import libcst as cst

from ..analyze.composition import BACKBONE, tables
from ..analyze.configs import is_auto
from ..analyze.trees import Trees
from ..facts import Ref
from ..source import Source, SourceFile
from .names import Move, Names

FROM_AUTO = {"from_config": "child_from_config", "from_pretrained": "child_from_pretrained"}
FROM_BACKBONE = "child_from_backbone"
MAKERS = (*FROM_AUTO.values(), FROM_BACKBONE)
"""The runtime's functions for children whose class is chosen by their config."""


CHILD_CLASS = "child_class"
"""The runtime's function for the class of a child, where upstream calls a class of another model."""


def carrier_method(
    source: Source, trees: Trees, names: Names, owner: Ref, name: str, dispatched: frozenset[str] = frozenset()
) -> cst.FunctionDef:
    """The generated method, from the class that defines it upstream. `dispatched` are the classes, as upstream writes them,
    that the runtime chooses."""
    method = trees.method(owner, name).method
    origin = source.file(owner.file)
    moved = method.visit(
        _Making(names, origin, method, owner, cst.parse_expression(names.reference(owner)), dispatched)
    )
    assert isinstance(moved, cst.FunctionDef)
    return moved


class _Making(Move):
    """`owner` is the class whose method this is, for `super(owner, self)`."""

    def __init__(
        self,
        names: Names,
        origin: SourceFile,
        function: cst.FunctionDef,
        init: Ref,
        owner: cst.BaseExpression,
        dispatched: frozenset[str],
    ) -> None:
        super().__init__(names, origin, function)
        self.function = function
        self.init = init
        self.owner = owner
        self.dispatched = dispatched

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        match original_node.func:
            case cst.Name(value="super") if not original_node.args:
                first = self.function.params.params[0].name
                return updated_node.with_changes(args=[cst.Arg(self.owner), cst.Arg(first)])
            case cst.Name(value="super") if _is_named(original_node.args[0].value, self.init.name):
                return updated_node.with_changes(args=[cst.Arg(self.owner), *updated_node.args[1:]])
            case cst.Attribute(value=cst.Name(value=name), attr=cst.Name(value=attribute)) if (
                is_auto(name) and attribute in FROM_AUTO
            ):
                auto = cst.ensure_type(updated_node.func, cst.Attribute).value
                return _through(FROM_AUTO[attribute], auto, updated_node)
            case cst.Name(value=name) if name == BACKBONE:
                return _through(FROM_BACKBONE, updated_node.func, updated_node)
            case cst.Attribute(value=cst.Name(value=name), attr=cst.Name(value="_from_config")) if self._asks(name):
                func = cst.ensure_type(updated_node.func, cst.Attribute)
                return updated_node.with_changes(func=func.with_changes(value=_child_class(func.value)))
            case cst.Name(value=name) if self._asks(name):
                return updated_node.with_changes(func=_child_class(updated_node.func))
            case cst.Attribute(value=cst.Name(value=module), attr=cst.Name(value=name)):
                if self._asks(f"{module}.{name}"):
                    return updated_node.with_changes(func=_child_class(updated_node.func))
        return updated_node

    def _asks(self, name: str) -> bool:
        return name in self.dispatched and name.partition(".")[0] not in self.local

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        table = tables(self.origin).get(original_node.value) if original_node.value not in self.local else None
        if table is None or id(original_node) in self._not_read:
            return super().leave_Name(original_node, updated_node)
        written = cst.parse_expression(self.origin.segment(table))
        classes = {each.value for each in _names(written)}
        if not any(self.names.moved(name, self.origin) == name for name in classes & self.names.generated):
            return super().leave_Name(original_node, updated_node)
        moved = written.visit(self)
        assert isinstance(moved, cst.BaseExpression)
        return moved


_PACKAGE = cst.Arg(
    keyword=cst.Name("package"),
    value=cst.Name("__package__"),
    equal=cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace("")),
)


def _names(table: cst.BaseExpression) -> list[cst.Name]:
    entries = cst.ensure_type(table, cst.Dict).elements
    return [entry.value for entry in entries if isinstance(entry.value, cst.Name)]


def _through(maker: str, first: cst.BaseExpression, call: cst.Call) -> cst.Call:
    """`maker(first, …, package=__package__)`, with the arguments of `call` between."""
    starred = [argument for argument in call.args if argument.star == "**"]
    plain = [argument for argument in call.args if argument.star != "**"]
    arguments = [each.with_changes(comma=cst.MaybeSentinel.DEFAULT) for each in (*plain, _PACKAGE, *starred)]
    return cst.Call(func=cst.Name(maker), args=[cst.Arg(first), *arguments])


def _child_class(upstream: cst.BaseExpression) -> cst.Call:
    return cst.Call(func=cst.Name(CHILD_CLASS), args=[cst.Arg(upstream), _PACKAGE])


def _is_named(node: cst.BaseExpression, name: str) -> bool:
    return isinstance(node, cst.Name) and node.value == name
