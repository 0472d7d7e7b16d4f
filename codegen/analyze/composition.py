"""How a class makes its children: every module that its `__init__` constructs, and that of a base class which it runs.

Other methods make children too: those that `__init__` calls, those that give the instance a part later (`enable_talker`), and
class methods that load the parts of a model one by one.
"""

from __future__ import annotations

import ast
from dataclasses import replace

from ..facts import Child, ChildKind, Ref, Span
from ..memo import remembered
from ..source import SourceFile
from .classes import PRETRAINED, Classes
from .configs import auto_target, is_auto
from .trees import Trees

BACKBONE = "load_backbone"
AUTO_METHODS = {"from_config": ChildKind.AUTO, "from_pretrained": ChildKind.PRETRAINED}


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
    kept = (child for child in above if child.attribute not in replaced and child.method == "__init__")
    return (*kept, *own, *_made_elsewhere(classes, ref))


def live(classes: Classes, ref: Ref) -> tuple[tuple[str, int], ...]:
    """The parts that the `__init__` of `ref` takes as live models and keeps under an attribute: names and lines."""
    found = classes.method(ref, "__init__")
    if found is None:
        return ()
    arguments = found[1].args
    models = {
        argument.arg
        for argument in (*arguments.args, *arguments.kwonlyargs)
        if argument.annotation is not None
        and any(isinstance(node, ast.Name) and node.id == PRETRAINED.name for node in ast.walk(argument.annotation))
    }
    parts: dict[str, int] = {}
    for node in ast.walk(found[1]):
        match node:
            case ast.Assign(targets=[target], value=ast.Name(id=name)) if name in models:
                attribute = _self_attribute(target)
                if attribute is not None:
                    parts.setdefault(attribute, node.lineno)
    return tuple(parts.items())


def _made_elsewhere(classes: Classes, ref: Ref) -> tuple[Child, ...]:
    """The children that other methods than `__init__` make: all that it calls, and what the others keep on the instance."""
    called = _called_by_init(classes, ref)
    found: list[Child] = []
    seen: set[str] = set()
    for owner in classes.mro(ref):
        for name, method in _makers(classes, owner).items():
            if name in seen:
                continue
            seen.add(name)
            visitor = _Children(classes, ref, owner)
            for statement in method.body:
                visitor.visit(statement)
            found += (
                replace(child, method=name, owner=owner)
                for child in visitor.children
                if (name in called or child.attribute or child.kind.by_config)
                and (child.target is None or classes.method(child.target, "forward") is not None)
            )
    return tuple(found)


@remembered
def _called_by_init(classes: Classes, ref: Ref) -> frozenset[str]:
    """The methods of `self` that `__init__` calls, directly or through others of them."""
    found: set[str] = set()
    pending = ["__init__"]
    while pending:
        method = classes.method(ref, pending.pop())
        for node in ast.walk(method[1]) if method is not None else ():
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)) if name not in found:
                    found.add(name)
                    pending.append(name)
    return frozenset(found)


@remembered
def _makers(classes: Classes, owner: Ref) -> dict[str, ast.FunctionDef]:
    """The methods in a class's body, but for `__init__` and `forward`, that may make a child."""
    node = classes.node(owner)
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef)] if node is not None else []
    return {
        method.name: method
        for method in methods
        if method.name not in ("__init__", "forward")
        and any(_may_make(classes, owner.file, inner) for inner in ast.walk(method) if isinstance(inner, ast.Call))
    }


def _may_make(classes: Classes, file: str, call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id=name):
            if name == BACKBONE:
                return True
            target = classes.resolve_class(file, name) if name[:1].isupper() else None
            return target is not None and classes.node(target) is not None
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return attribute == "_from_config" or (attribute in AUTO_METHODS and is_auto(name))
    return False


@remembered
def tables(file: SourceFile) -> dict[str, ast.Dict]:
    """The dictionaries that a file binds at its top level."""
    return {
        target.id: node.value
        for node in file.tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


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
        self._aliases: dict[str, tuple[Ref, ...]] = {}
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
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        chosen = self._classes_in(node.value) if names else ()
        for name in names:
            # Under another condition the same name stands for another class: all of them count.
            self._aliases[name] = tuple(dict.fromkeys((*self._aliases.get(name, ()), *chosen)))
        self._attributes.append(attribute)
        self._targets.append(names)
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
        for kind, callee, target in made:
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
                    conditional=self._conditions > 0 or len(made) > 1,
                    span=Span(file=self.file.rel, line=node.lineno),
                )
            )
        self.generic_visit(node)

    def _made(self, node: ast.Call) -> list[tuple[ChildKind, str, Ref | None]]:
        match node.func:
            case ast.Name(id=name) if name == BACKBONE:
                return [(ChildKind.BACKBONE, name, None)]
            case ast.Name(id=name):
                target = self._module_class(name)
                if target is not None:
                    return [(ChildKind.DIRECT, name, target)]
                if name in self._aliases:
                    return [(ChildKind.CHOSEN, name, each) for each in self._aliases[name]]
                return [(ChildKind.FACTORY, name, each) for each in self._factory(name)]
            case ast.Subscript() as table:
                return [(ChildKind.CHOSEN, ast.unparse(table.value), each) for each in self._classes_in(table)]
            case ast.Attribute(value=ast.Name(id=name), attr="_from_config"):
                target = self._module_class(name)
                return [] if target is None else [(ChildKind.FROM_CONFIG, name, target)]
            case ast.Attribute(value=ast.Name(id=name), attr="from_config") if is_auto(name):
                default = auto_target(self.classes, self.ref, name, self._first_argument(node))
                return [(ChildKind.AUTO, name, default)]
            case ast.Attribute(value=ast.Name(id=name), attr="from_pretrained") if is_auto(name):
                return [(ChildKind.PRETRAINED, name, None)]
            case ast.Attribute(value=ast.Name(id=module), attr=name) as called if self.file.is_copy:
                target = self.classes.named(self.file.rel, called)
                made = target is not None and self.classes.node(target) is not None
                return [(ChildKind.DIRECT, f"{module}.{name}", target)] if made else []
        return []

    def _classes_in(self, value: ast.expr) -> tuple[Ref, ...]:
        """The modules' classes that an expression may stand for: a name, a choice of two, an entry of a table."""
        found: list[Ref] = []
        match value:
            case ast.Name(id=name):
                target = self._module_class(name)
                found += [target] if target is not None else self._aliases.get(name, ())
            case ast.IfExp(body=one, orelse=other):
                found += (*self._classes_in(one), *self._classes_in(other))
            case ast.Subscript(value=table) | ast.Call(func=ast.Attribute(value=table, attr="get")):
                if isinstance(table, ast.Name):
                    table = tables(self.file).get(table.id, table)
                if isinstance(table, ast.Dict):
                    found += (each for entry in table.values for each in self._classes_in(entry))
        return tuple(dict.fromkeys(each for each in found if self.classes.method(each, "forward") is not None))

    def _factory(self, name: str) -> tuple[Ref, ...]:
        """The modules' classes that a function of this file makes."""
        definition = self.file.definitions.get(name)
        if definition is None or not isinstance(definition.node, ast.FunctionDef):
            return ()
        calls = (node for node in ast.walk(definition.node) if isinstance(node, ast.Call))
        names = [call.func for call in calls if isinstance(call.func, ast.Name)]
        return tuple(dict.fromkeys(each for called in names for each in self._classes_in(called)))

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
