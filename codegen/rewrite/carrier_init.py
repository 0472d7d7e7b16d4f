"""The `__init__` of a carrier: upstream's body, making generated children where upstream makes its own.

Zero-argument `super()` becomes explicit, so that upstream's own `__init__`, whose body this is, doesn't run as well.
`AutoModel.from_config(…)`, and that of the other auto classes, goes through the runtime, which knows the generated classes of other packages.
"""

from __future__ import annotations

import libcst as cst

from ..analyze.configs import is_auto
from ..analyze.trees import Trees
from ..facts import Ref
from ..source import Source, SourceFile
from .names import Move, Names

CHILD_FROM_CONFIG = "child_from_config"
"""The runtime's function for children that upstream makes with `AutoModel.from_config`."""


def carrier_init(source: Source, trees: Trees, names: Names, init: Ref) -> cst.FunctionDef:
    """The generated `__init__`, from the class that defines it upstream."""
    method = trees.method(init, "__init__").method
    origin = source.file(init.file)
    moved = method.visit(_Init(names, origin, method, cst.parse_expression(names.reference(init))))
    assert isinstance(moved, cst.FunctionDef)
    return moved


class _Init(Move):
    """`owner` is the class whose `__init__` this is, for `super(owner, self)`."""

    def __init__(self, names: Names, origin: SourceFile, function: cst.FunctionDef, owner: cst.BaseExpression) -> None:
        super().__init__(names, origin, function)
        self.owner = owner

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        match original_node.func:
            case cst.Name(value="super") if not original_node.args:
                return updated_node.with_changes(args=[cst.Arg(self.owner), cst.Arg(cst.Name("self"))])
            case cst.Attribute(value=cst.Name(value=name), attr=cst.Name(value="from_config")) if is_auto(name):
                pass
            case _:
                return updated_node
        auto = cst.ensure_type(updated_node.func, cst.Attribute).value
        package = cst.Arg(
            keyword=cst.Name("package"),
            value=cst.Name("__package__"),
            equal=cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace("")),
        )
        return cst.Call(func=cst.Name(CHILD_FROM_CONFIG), args=[cst.Arg(auto), *updated_node.args, package])
