"""Which classes there are, what they inherit, and in which class of the MRO a method is defined."""

from __future__ import annotations

import ast
from typing import Any

from ..facts import Ref
from ..files import COPY
from ..memo import remembered
from ..source import PACKAGE, Source

FRAMEWORK = "transformers/modeling_utils.py"
PRETRAINED = Ref(file=FRAMEWORK, name="PreTrainedModel")
LAYERS = "transformers/modeling_layers.py"


def has_models(file: str) -> bool:
    """Whether a file's classes are looked into: those of models, Transformers' or others, not the framework's."""
    return file == LAYERS or file.startswith((f"{PACKAGE}/models/", f"{COPY}/"))


class Classes:
    """Questions about the classes of one source, each answered once.

    The MRO ends at the framework: of the classes outside `models/` only those of `modeling_layers.py` bring an `__init__` or
    a forward that a model runs, so no other file of the framework is read to follow a base class.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.memo: dict[object, Any] = {}

    @remembered
    def resolve_class(self, file: str, name: str) -> Ref | None:
        """The class that a top-level name of `file` stands for; a framework class without reading its file."""
        source_file = self.source.file(file)
        if name in source_file.definitions:
            return Ref(file=file, name=name) if source_file.definitions[name].is_class else None
        imported = source_file.imports.get(name)
        if imported is None or imported.name is None:
            found = self.source.resolve(name, source_file) if source_file.is_copy else None  # by a star import
        elif imported.module == PACKAGE:
            found = self.source.public(imported.name)
        elif not imported.module.startswith((PACKAGE, f"{COPY}")):
            return None
        else:
            path = imported.module.replace(".", "/") + ".py"
            if path != LAYERS and not path.startswith("transformers/models/") and not imported.module.startswith(COPY):
                return Ref(file=path, name=imported.name)
            found = self.source.resolve(name, source_file)
        if found is None or not has_models(found.file):
            return found
        return found if self.source.definition(found).is_class else None

    def node(self, ref: Ref) -> ast.ClassDef | None:
        """The class statement, or None for a class of the framework."""
        if not has_models(ref.file):
            return None
        node = self.source.definition(ref).node
        assert isinstance(node, ast.ClassDef)
        return node

    def bases(self, ref: Ref) -> tuple[Ref, ...]:
        """The base classes that Transformers defines, in order."""
        node = self.node(ref)
        if node is None:
            return ()
        found = [self.named(ref.file, base) for base in node.bases]
        return tuple(base for base in found if base is not None)

    def named(self, file: str, expression: ast.expr) -> Ref | None:
        """The class that `Name` or `module.Name` stands for in `file`."""
        match expression:
            case ast.Name(id=name):
                return self.resolve_class(file, name)
            case ast.Attribute(value=ast.Name(id=alias), attr=name):
                imported = self.source.file(file).imports.get(alias)
                if imported is None:
                    return None
                module = imported.module if imported.name is None else f"{imported.module}.{imported.name}"
                if module == PACKAGE:
                    return self.source.public(name)
                target = self.source.module_file(module)
                return self.resolve_class(target.rel, name) if target is not None else None
        return None

    @remembered
    def mro(self, ref: Ref) -> tuple[Ref, ...]:
        """The C3 linearization over Transformers' classes, `ref` first."""
        bases = self.bases(ref)
        sequences = [list(self.mro(base)) for base in bases] + [list(bases)]
        merged = [ref]
        while any(sequences):
            sequences = [sequence for sequence in sequences if sequence]
            heads = [sequence[0] for sequence in sequences]
            free = [head for head in heads if all(head not in sequence[1:] for sequence in sequences)]
            head = free[0] if free else heads[0]
            merged.append(head)
            sequences = [[entry for entry in sequence if entry != head] for sequence in sequences]
        return tuple(merged)

    def is_pretrained(self, ref: Ref) -> bool:
        return PRETRAINED in self.mro(ref)

    def method(self, ref: Ref, name: str) -> tuple[Ref, ast.FunctionDef] | None:
        """The class of the MRO that defines the method, and the method; framework classes are not looked into."""
        for owner in self.mro(ref):
            node = self.node(owner)
            for statement in node.body if node is not None else ():
                if isinstance(statement, ast.FunctionDef) and statement.name == name:
                    return owner, statement
        return None

    def attribute(self, ref: Ref, name: str) -> ast.expr | None:
        """The value that a class attribute is given in a class body of the MRO."""
        for owner in self.mro(ref):
            node = self.node(owner)
            for statement in node.body if node is not None else ():
                if isinstance(statement, ast.Assign):
                    if any(isinstance(target, ast.Name) and target.id == name for target in statement.targets):
                        return statement.value
                elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                    if isinstance(statement.target, ast.Name) and statement.target.id == name:
                        return statement.value
        return None

    def text_attribute(self, ref: Ref, name: str) -> str | None:
        value = self.attribute(ref, name)
        return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None

    def config_class(self, ref: Ref) -> Ref | None:
        """The configuration class, from the annotation `config: XConfig` of a class body or `config_class = XConfig`."""
        for owner in self.mro(ref):
            node = self.node(owner)
            for statement in node.body if node is not None else ():
                name: ast.expr | None = None
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    name = statement.annotation if statement.target.id == "config" else None
                elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                    name = statement.value if statement.targets[0].id == "config_class" else None
                if isinstance(name, ast.Name):
                    return self.resolve_class(owner.file, name.id)
        return None
