"""How a class makes its children: every module that its `__init__` constructs, and that of a base class which it runs."""

from __future__ import annotations

import ast
from dataclasses import replace

from ..facts import Child, ChildKind, Ref, Span
from ..memo import remembered
from .classes import Classes
from .configs import auto_target, is_auto
from .trees import Trees


@remembered
def children(classes: Classes, trees: Trees, ref: Ref) -> tuple[Child, ...]:
    """The children that the `__init__` of `ref` makes, in order; the `__init__` may be inherited.

    Where it runs a base class's `__init__` through `super()`, the children made there come first, unless it makes another
    under the same attribute.
    """
    found = classes.method(ref, "__init__")
    if found is None:
        return ()
    visitor = _Children(classes, ref, found[0])
    for statement in found[1].body:
        visitor.visit(statement)
    own = tuple(visitor.children)
    base = inherited_init(classes, ref)
    replaced = {child.attribute for child in own}
    above = children(classes, trees, base) if base is not None else ()
    return (*(child for child in above if child.attribute not in replaced), *own)


@remembered
def inherited_init(classes: Classes, ref: Ref) -> Ref | None:
    """The base class whose `__init__` that of `ref` runs through `super()`; None where that is the framework's."""
    found = classes.method(ref, "__init__")
    if found is None or not any(map(_is_super_init, ast.walk(found[1]))):
        return None
    mro = classes.mro(ref)
    for base in mro[mro.index(found[0]) + 1 :]:
        node = classes.node(base)
        for statement in node.body if node is not None else ():
            if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                return base
    return None


@remembered
def assigned(classes: Classes, ref: Ref) -> frozenset[str]:
    """The attributes that the `__init__` of `ref` gives the instance, whatever their value."""
    found = classes.method(ref, "__init__")
    if found is None:
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(found[1]):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.Call(func=ast.Name(id="setattr"), args=[ast.Name(id="self"), ast.Attribute(attr=name), _]):
                value = classes.text_attribute(ref, name)
                names.update([value] if value else [])
    base = inherited_init(classes, ref)
    return frozenset(names) | (assigned(classes, base) if base is not None else frozenset())


def _is_super_init(node: ast.AST) -> bool:
    """Whether the node is `super().__init__(…)`."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="__init__")):
            return True
    return False


class _Children(ast.NodeVisitor):
    def __init__(self, classes: Classes, ref: Ref, owner: Ref) -> None:
        self.classes = classes
        self.ref = ref
        self.file = classes.source.file(owner.file)
        self.children: list[Child] = []
        self._attributes: list[str] = []
        self._targets: list[set[str]] = []
        self._locals: dict[str, list[int]] = {}
        self._repeats = 0
        self._conditions = 0

    # Where a construction stands: which attribute it goes to, in a loop, under a condition.

    def visit_Assign(self, node: ast.Assign) -> None:
        targets = [_self_attribute(target) for target in node.targets]
        attribute = next((name for name in targets if name), "")
        if attribute and isinstance(node.value, ast.Name):
            # `part = X(config)` earlier, and now `self.attribute = part`.
            for position in self._locals.get(node.value.id, ()):
                self.children[position] = replace(self.children[position], attribute=attribute)
        self._attributes.append(attribute)
        self._targets.append({target.id for target in node.targets if isinstance(target, ast.Name)})
        self.generic_visit(node)
        self._attributes.pop()
        self._targets.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._attributes.append(_self_attribute(node.target) or "")
        self.generic_visit(node)
        self._attributes.pop()

    def visit_For(self, node: ast.For | ast.ListComp | ast.GeneratorExp) -> None:
        self._repeats += 1
        self.generic_visit(node)
        self._repeats -= 1

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self.visit_For(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self.visit_For(node)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        self._conditions += 1
        self.generic_visit(node)
        self._conditions -= 1

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit_If(node)

    def visit_Call(self, node: ast.Call) -> None:
        if _sets_attribute(node):
            self._attributes.append(self._set_attribute(node.args[1]))
            self.generic_visit(node)
            self._attributes.pop()
            return
        made = self._made(node)
        if made is not None:
            kind, callee, target = made
            for name in self._targets[-1] if self._targets else ():
                self._locals.setdefault(name, []).append(len(self.children))
            self.children.append(
                Child(
                    attribute=next((name for name in reversed(self._attributes) if name), ""),
                    kind=kind,
                    callee=callee,
                    target=target,
                    config=self._first_argument(node),
                    repeated=self._repeats > 0,
                    conditional=self._conditions > 0,
                    span=Span(file=self.file.rel, line=node.lineno),
                )
            )
        self.generic_visit(node)

    def _made(self, node: ast.Call) -> tuple[ChildKind, str, Ref | None] | None:
        match node.func:
            case ast.Name(id=name):
                target = self._module_class(name)
                return None if target is None else (ChildKind.DIRECT, name, target)
            case ast.Attribute(value=ast.Name(id=name), attr="_from_config"):
                target = self._module_class(name)
                return None if target is None else (ChildKind.FROM_CONFIG, name, target)
            case ast.Attribute(value=ast.Name(id=name), attr="from_config") if is_auto(name):
                return ChildKind.AUTO, name, auto_target(self.classes, self.ref, name, self._first_argument(node))
        return None

    def _first_argument(self, node: ast.Call) -> str | None:
        """Its text, whether it is given by position or by keyword."""
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        if not values:
            return None
        return self.file.segment(values[0].value if isinstance(values[0], ast.Starred) else values[0])

    def _module_class(self, name: str) -> Ref | None:
        """The modeling class of that name; what the framework defines is no child that could be generated."""
        target = self.classes.resolve_class(self.file.rel, name)
        return target if target is not None and self.classes.node(target) is not None else None

    def _set_attribute(self, name: ast.expr) -> str:
        """The attribute that `setattr(self, <name>, …)` sets, where the source fixes it."""
        if isinstance(name, ast.Constant):
            return str(name.value)
        attribute = _self_attribute(name)
        return (self.classes.text_attribute(self.ref, attribute) or "") if attribute else ""


def _sets_attribute(node: ast.Call) -> bool:
    """Whether the call is `setattr(self, name, value)`."""
    match node:
        case ast.Call(func=ast.Name(id="setattr"), args=[ast.Name(id="self"), _, _]):
            return True
    return False


def _self_attribute(node: ast.expr) -> str | None:
    match node:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name
    return None
