"""Moves upstream code into a generated module: every name it reads from its own module is made to mean the same there.

A name of the model's own file becomes `upstream.Name`, unless the package generates a class of that name, which is the point
of carrying it. A name that upstream imports is imported from where upstream has it.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from functools import lru_cache

import libcst as cst

from ..analyze.trees import walk
from ..errors import VgenError
from ..facts import Ref, Span
from ..source import Import, SourceFile

UPSTREAM = "upstream"
"""The name by which a generated module knows the upstream module that it subclasses."""


_OF_MODULE = frozenset({"__file__", "__name__", "__package__"})


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one generated module. `imports` grows as code is moved in."""

    file: SourceFile
    generated: frozenset[str]
    imports: set[Import] = field(default_factory=set)

    def reference(self, ref: Ref) -> str:
        """How the generated module writes an upstream definition."""
        if ref.file == self.file.rel:
            return f"{UPSTREAM}.{ref.name}"
        module = ref.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if ref.name in self.generated:
            # The generated class has the name: upstream's is reached through its module.
            package, _, stem = module.rpartition(".")
            alias = f"{UPSTREAM}_{stem}"
            self.imports.add(Import(module=package, name=stem, bound_as=alias))
            return f"{alias}.{ref.name}"
        self.imports.add(Import(module=module, name=ref.name, bound_as=ref.name))
        return ref.name

    def moved(self, name: str, origin: SourceFile) -> str:
        """How the generated module writes a top-level name of `origin`; a builtin or an unknown name stays."""
        imported = origin.imports.get(name)
        if name in self.generated and (origin is self.file or imported is not None):
            return name
        if name in origin.definitions or name in origin.assigned or (origin.is_copy and name in origin.tried):
            return self.reference(Ref(file=origin.rel, name=name))
        if origin is self.file and name in _OF_MODULE:
            return f"{UPSTREAM}.{name}"
        if imported is None and origin.star_imports:
            return self.reference(Ref(file=origin.rel, name=name)) if not hasattr(builtins, name) else name
        if imported is not None:
            self.imports.add(imported)
        elif not hasattr(builtins, name):
            raise VgenError(
                "unknown-name",
                f"`{name}` is read here, but nothing at the top level of the file binds it.",
                span=Span(file=origin.rel, line=1),
            )
        return name


class Move(cst.CSTTransformer):
    """Rewrites the free names of one function for the generated module. The function's own names stay."""

    def __init__(self, names: Names, origin: SourceFile, function: cst.FunctionDef) -> None:
        super().__init__()
        self.names = names
        self.origin = origin
        self.local = _bound(function)
        self._not_read: set[int] = set()

    def visit_Attribute(self, node: cst.Attribute) -> None:
        self._not_read.add(id(node.attr))

    def visit_Arg(self, node: cst.Arg) -> None:
        self._not_read.add(id(node.keyword))

    def visit_Param(self, node: cst.Param) -> None:
        self._not_read.add(id(node.name))

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        self._not_read.add(id(node.name))

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        return False

    def leave_ImportFrom(self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom) -> cst.ImportFrom:
        """An import inside of the function: relative to upstream's package, so absolute in the generated module."""
        if not original_node.relative:
            return updated_node
        named = cst.Module(body=()).code_for_node(original_node.module) if original_node.module is not None else ""
        module = self.origin.absolute(named, level=len(original_node.relative))
        # A copy's name has a dot in front: it is relative to the generated package.
        expression = cst.parse_expression(module.removeprefix("."))
        assert isinstance(expression, cst.Name | cst.Attribute)
        return updated_node.with_changes(
            module=expression,
            relative=(cst.Dot(),) if module.startswith(".") else (),
            whitespace_after_from=cst.SimpleWhitespace(" "),
        )

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        name = original_node.value
        if id(original_node) in self._not_read or name in self.local or name == "super":
            return updated_node
        moved = self.names.moved(name, self.origin)
        return updated_node if moved == name else cst.parse_expression(moved)


@lru_cache(maxsize=64)
def _bound(function: cst.FunctionDef) -> frozenset[str]:
    """Every name that the function binds itself: parameters, assignments, loops, comprehensions, inner functions, imports."""
    bound: set[str] = {"self"}
    for node in walk(function):
        match node:
            case cst.Param(name=target) | cst.AsName(name=target):
                bound |= _stored(target)
            case cst.FunctionDef(name=cst.Name(value=name)) if node is not function:
                bound.add(name)
            case cst.AssignTarget(target=target) | cst.AnnAssign(target=target) | cst.NamedExpr(target=target):
                bound |= _stored(target)
            case cst.CompFor(target=target) | cst.For(target=target):
                bound |= _stored(target)
            case cst.ImportAlias(name=cst.Name(value=name), asname=None):
                bound.add(name)
    return frozenset(bound)


def _stored(target: cst.CSTNode) -> set[str]:
    """The names that an assignment target binds: `a, (b, c)` binds three, `a.b` and `a[b]` none."""
    match target:
        case cst.Name(value=name):
            return {name}
        case cst.Tuple(elements=elements) | cst.List(elements=elements):
            return {name for element in elements for name in _stored(element.value)}
        case cst.StarredElement(value=value):
            return _stored(value)
    return set()
