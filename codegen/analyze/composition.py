"""How a class makes its children: every module that its `__init__` constructs."""

from __future__ import annotations

from functools import cache

import libcst as cst

from ..facts import Child, ChildKind, Ref
from .classes import Classes
from .configs import auto_target
from .trees import Tree, Trees


@cache
def children(classes: Classes, trees: Trees, ref: Ref) -> tuple[Child, ...]:
    """The children that the `__init__` of `ref` makes, in order; the `__init__` may be inherited."""
    found = classes.method(ref, "__init__")
    if found is None:
        return ()
    owner, _ = found
    visitor = _Children(classes, ref, trees.method(owner, "__init__"))
    visitor.tree.method.visit(visitor)
    return tuple(visitor.children)


class _Children(cst.CSTVisitor):
    def __init__(self, classes: Classes, ref: Ref, tree: Tree) -> None:
        super().__init__()
        self.classes = classes
        self.ref = ref
        self.tree = tree
        self.children: list[Child] = []
        self._attributes: list[str] = []
        self._repeats = 0
        self._conditions = 0

    # Where a construction stands: which attribute it goes to, in a loop, under a condition.

    def visit_Assign(self, node: cst.Assign) -> None:
        targets = [_self_attribute(target.target) for target in node.targets]
        self._attributes.append(next((name for name in targets if name), ""))

    def leave_Assign(self, original_node: cst.Assign) -> None:
        self._attributes.pop()

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:
        self._attributes.append(_self_attribute(node.target) or "")

    def leave_AnnAssign(self, original_node: cst.AnnAssign) -> None:
        self._attributes.pop()

    def visit_For(self, node: cst.For) -> None:
        self._repeats += 1

    def leave_For(self, original_node: cst.For) -> None:
        self._repeats -= 1

    def visit_ListComp(self, node: cst.ListComp) -> None:
        self._repeats += 1

    def leave_ListComp(self, original_node: cst.ListComp) -> None:
        self._repeats -= 1

    def visit_GeneratorExp(self, node: cst.GeneratorExp) -> None:
        self._repeats += 1

    def leave_GeneratorExp(self, original_node: cst.GeneratorExp) -> None:
        self._repeats -= 1

    def visit_If(self, node: cst.If) -> None:
        self._conditions += 1

    def leave_If(self, original_node: cst.If) -> None:
        self._conditions -= 1

    def visit_IfExp(self, node: cst.IfExp) -> None:
        self._conditions += 1

    def leave_IfExp(self, original_node: cst.IfExp) -> None:
        self._conditions -= 1

    def visit_Call(self, node: cst.Call) -> None:
        if _sets_attribute(node):
            self._attributes.append(self._set_attribute(node.args[1].value))
            return
        made = self._made(node)
        if made is None:
            return
        kind, callee, target = made
        self.children.append(
            Child(
                attribute=next((name for name in reversed(self._attributes) if name), ""),
                kind=kind,
                callee=callee,
                target=target,
                config=_code(node.args[0].value) if node.args else None,
                repeated=self._repeats > 0,
                conditional=self._conditions > 0,
                span=self.tree.span(node),
            )
        )

    def leave_Call(self, original_node: cst.Call) -> None:
        if _sets_attribute(original_node):
            self._attributes.pop()

    def _made(self, node: cst.Call) -> tuple[ChildKind, str, Ref | None] | None:
        match node.func:
            case cst.Name(value=name):
                target = self._module_class(name)
                return None if target is None else (ChildKind.DIRECT, name, target)
            case cst.Attribute(value=cst.Name(value=name), attr=cst.Name(value="_from_config")):
                target = self._module_class(name)
                return None if target is None else (ChildKind.FROM_CONFIG, name, target)
            case cst.Attribute(value=cst.Name(value=name), attr=cst.Name(value="from_config")) if name == "AutoModel":
                config = _code(node.args[0].value) if node.args else None
                return ChildKind.AUTO, name, auto_target(self.classes, self.ref, config)
        return None

    def _module_class(self, name: str) -> Ref | None:
        """The modeling class of that name; what the framework defines is no child that could be generated."""
        target = self.classes.resolve_class(self.tree.ref.file, name)
        return target if target is not None and self.classes.node(target) is not None else None

    def _set_attribute(self, name: cst.BaseExpression) -> str:
        """The attribute that `setattr(self, <name>, …)` sets, where the source fixes it."""
        if isinstance(name, cst.SimpleString):
            return str(name.evaluated_value)
        attribute = _self_attribute(name)
        return (self.classes.text_attribute(self.ref, attribute) or "") if attribute else ""


def _sets_attribute(node: cst.Call) -> bool:
    """Whether the call is `setattr(self, name, value)`."""
    match node:
        case cst.Call(func=cst.Name(value="setattr"), args=[cst.Arg(value=cst.Name(value="self")), _, _]):
            return True
    return False


def _self_attribute(node: cst.BaseExpression) -> str | None:
    match node:
        case cst.Attribute(value=cst.Name(value="self"), attr=cst.Name(value=name)):
            return name
    return None


def _code(node: cst.CSTNode) -> str:
    return cst.Module(body=()).code_for_node(node)
