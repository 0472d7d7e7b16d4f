"""Finds and reads modeling files, of an installed Transformers or of a folder, without importing any of it.

A `SourceFile` keeps an index of its top-level definitions, made by the standard library's `ast`, which reads a file ten
times faster than LibCST. LibCST then parses single methods, the ones that analysis asks for: see `codegen.analyze.trees`.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .errors import VgenError
from .facts import Ref, Span

PACKAGE = "transformers"
"""The package whose models are built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A top-level class or function: lines count from 1, decorators included."""

    name: str
    is_class: bool
    first_line: int
    def_line: int
    last_line: int
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """A name bound by an import at the top level: `module` is absolute, `name` None for `import module`."""

    module: str
    name: str | None
    bound_as: str


class SourceFile:
    """One Python file, read once. `rel` is its path from the source's root, with forward slashes."""

    def __init__(self, path: Path, rel: str) -> None:
        self.path = path
        self.rel = rel
        try:
            self.text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise VgenError("unreadable", f"{path} can't be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise VgenError(
                "unreadable", f"{path} isn't UTF-8 text ({error.reason} at byte {error.start})."
            ) from error

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines(keepends=True)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def tree(self) -> ast.Module:
        try:
            return ast.parse(self.text)
        except SyntaxError as error:
            raise VgenError(
                "syntax",
                f"Python can't parse this file: {error.msg}.",
                span=Span(file=self.rel, line=error.lineno or 1),
                hint="Correct the file, or reinstall Transformers if it isn't yours.",
            ) from error

    @cached_property
    def module(self) -> str:
        """The dotted name that the file would be imported by."""
        return self.rel.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        found = {}
        for node in _top_level(self.tree.body):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found[node.name] = Definition(
                    name=node.name,
                    is_class=isinstance(node, ast.ClassDef),
                    first_line=min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]),
                    def_line=node.lineno,
                    last_line=node.end_lineno or node.lineno,
                    node=node,
                )
        return found

    @cached_property
    def imports(self) -> dict[str, Import]:
        found = {}
        for node in _top_level(self.tree.body):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    parent, _, last = alias.name.rpartition(".")
                    if alias.asname == last and parent:
                        # `import torch.nn as nn` is `from torch import nn`.
                        found[bound] = Import(module=parent, name=last, bound_as=bound)
                    else:
                        found[bound] = Import(module=alias.name if alias.asname else bound, name=None, bound_as=bound)
            elif isinstance(node, ast.ImportFrom):
                module = self.absolute(node.module or "", level=node.level)
                for alias in node.names:
                    bound = alias.asname or alias.name
                    found[bound] = Import(module=module, name=alias.name, bound_as=bound)
        return found

    def absolute(self, module: str, *, level: int) -> str:
        """The absolute name of a module imported with `level` leading dots."""
        if not level:
            return module
        package = self.module if self.rel.endswith("/__init__.py") else self.module.rpartition(".")[0]
        parts = package.split(".")
        return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])])

    @cached_property
    def star_imports(self) -> tuple[str, ...]:
        return tuple(imported.module for imported in self.imports.values() if imported.name == "*")

    @cached_property
    def assigned(self) -> frozenset[str]:
        """Names that top-level assignments bind."""
        names: set[str] = set()
        for node in _top_level(self.tree.body):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
        return frozenset(names)

    @cached_property
    def copyright(self) -> tuple[str, ...]:
        """The lines of the leading comment that name a copyright holder."""
        comments = []
        for line in self.lines:
            if line.strip() and not line.startswith("#"):
                break
            if line.startswith("# Copyright"):
                comments.append(line.rstrip())
        return tuple(comments)

    def span(self, node: ast.expr | ast.stmt | Definition) -> Span:
        if isinstance(node, Definition):
            return Span(file=self.rel, line=node.def_line)
        return Span(file=self.rel, line=node.lineno, column=node.col_offset)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those in `if` and `try` included: that is where optional imports stand."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _top_level(node.body)
            yield from _top_level(node.orelse)
        elif isinstance(node, ast.Try):
            yield from _top_level(node.body)
            for handler in node.handlers:
                yield from _top_level(handler.body)
            yield from _top_level(node.orelse)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A Transformers to read: `root` is the folder that holds the package, `version` what its metadata says.

    Compared by identity: what was read from one object is never taken for what another would read.
    """

    root: Path
    version: str
    _files: dict[str, SourceFile | None] = field(default_factory=dict, repr=False)
    _auto_models: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    def file(self, rel: str) -> SourceFile:
        found = self.find_file(rel)
        if found is None:
            raise VgenError("missing-file", f"{self.root / rel} doesn't exist.", hint="Reinstall Transformers.")
        return found

    def find_file(self, rel: str) -> SourceFile | None:
        if rel not in self._files:
            path = self.root / rel
            self._files[rel] = SourceFile(path, rel) if path.is_file() else None
        return self._files[rel]

    def module_file(self, module: str) -> SourceFile | None:
        """The file of a dotted module of the package, or None for a module outside it."""
        if module.partition(".")[0] != PACKAGE:
            return None
        path = module.replace(".", "/")
        return self.find_file(f"{path}.py") or self.find_file(f"{path}/__init__.py")

    def resolve(self, name: str, file: SourceFile, *, _seen: frozenset[tuple[str, str]] = frozenset()) -> Ref | None:
        """The definition that a top-level name of `file` stands for, through imports and re-exports, or None."""
        if name in file.definitions:
            return Ref(file=file.rel, name=name)
        key = (file.rel, name)
        if key in _seen:
            return None
        imported = file.imports.get(name)
        if imported is not None and imported.name is not None:
            # `from . import x` may bind a module; only definitions are asked for here.
            target = self.module_file(imported.module)
            return self.resolve(imported.name, target, _seen=_seen | {key}) if target is not None else None
        for module in file.star_imports:
            target = self.module_file(module)
            found = self.resolve(name, target, _seen=_seen | {key}) if target is not None else None
            if found is not None:
                return found
        return None

    def definition(self, ref: Ref) -> Definition:
        return self.file(ref.file).definitions[ref.name]

    def span(self, ref: Ref) -> Span:
        return self.file(ref.file).span(self.definition(ref))

    # The catalogue: which model types there are, and in which folder each stands.

    def models(self) -> tuple[str, ...]:
        """Every folder of `models/` with a modeling file of its own name."""
        folders = (self.root / PACKAGE / "models").iterdir()
        return tuple(sorted(path.name for path in folders if (path / f"modeling_{path.name}.py").is_file()))

    @cached_property
    def folders(self) -> dict[str, str]:
        """Model type → folder, as Transformers' own tables have it."""
        configs = self._table("CONFIG_MAPPING_NAMES")
        special = self._table("SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
        return {name: special.get(name, name.replace("-", "_")) for name in configs}

    def auto_models(self, auto_class: str) -> dict[str, str]:
        """Model type → the class that one of Transformers' auto classes makes of it; the first where there are several."""
        if auto_class not in self._auto_models:
            file = self.file(f"{PACKAGE}/models/auto/modeling_auto.py")
            definition = file.definitions.get(auto_class)
            mapping = None
            for node in definition.node.body if definition is not None else ():
                if isinstance(node, ast.Assign) and any(_is_name(target, "_model_mapping") for target in node.targets):
                    mapping = node.value.id if isinstance(node.value, ast.Name) else None
            self._auto_models[auto_class] = self._table(f"{mapping}_NAMES") if mapping is not None else {}
        return self._auto_models[auto_class]

    def resolve_model(self, name: str) -> str:
        """The folder of a model type or folder name; a hyphen serves for an underscore."""
        wanted = name.replace("-", "_")
        if wanted.isidentifier() and self.find_file(f"{PACKAGE}/models/{wanted}/modeling_{wanted}.py") is not None:
            return wanted
        models = self.models()
        by_type = {model_type.replace("-", "_"): folder for model_type, folder in self.folders.items()}
        folder = by_type.get(wanted)
        if folder in models:
            return folder
        near = difflib.get_close_matches(wanted, sorted({*models, *by_type}), n=4, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`vgen list` shows what can be built."
        raise VgenError("unknown-model", f"Transformers {self.version} has no model '{name}'.", hint=hint)

    def modeling_file(self, model: str) -> SourceFile:
        return self.file(f"{PACKAGE}/models/{model}/modeling_{model}.py")

    def _table(self, name: str) -> dict[str, str]:
        """A mapping of Transformers' auto classes, read as a literal from the files that define or extend it."""
        table: dict[str, str] = {}
        for stem in ("auto_mappings", "configuration_auto", "modeling_auto"):
            file = self.find_file(f"{PACKAGE}/models/auto/{stem}.py")
            for node in file.tree.body if file is not None else []:
                if isinstance(node, ast.Assign) and any(_is_name(target, name) for target in node.targets):
                    table.update(_pairs(node.value))
                elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                    call = node.value
                    if isinstance(call.func, ast.Attribute) and _is_name(call.func.value, name):
                        table.update(_pairs(call))
        return table


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _pairs(node: ast.expr) -> dict[str, str]:
    """The string pairs in an `OrderedDict([(k, v), …])`, a dict literal or a splat of one; a tuple's first string counts."""
    found: dict[str, str] = {}
    for inner in ast.walk(node):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(inner, ast.Tuple) and len(inner.elts) == 2:
            pairs = [(inner.elts[0], inner.elts[1])]
        elif isinstance(inner, ast.Dict):
            pairs = list(zip(inner.keys, inner.values, strict=True))
        for key, value in pairs:
            first = value.elts[0] if isinstance(value, ast.Tuple) and value.elts else value
            if isinstance(key, ast.Constant) and isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.setdefault(str(key.value), first.value)
    return found


def installed() -> Source:
    """The Transformers that this Python has, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise VgenError(
            "no-transformers", "No Transformers is installed in this Python.", hint="Run `pip install transformers`."
        )
    return Source(
        root=Path(next(iter(spec.submodule_search_locations))).parent, version=importlib.metadata.version(PACKAGE)
    )


def folder(path: Path) -> Source:
    """An unpacked Transformers: the package folder itself, or the folder (or `src/`) that holds it."""
    for candidate in (path, path / "src", path.parent):
        package = candidate / PACKAGE
        if (package / "models" / "auto").is_dir() and (candidate != path.parent or path.name == PACKAGE):
            return Source(root=candidate, version=_version_of(package))
    raise VgenError(
        "no-transformers",
        f"{path} holds no Transformers: there is no {PACKAGE}/models/auto below it.",
        hint="Name the folder that contains the `transformers` package.",
    )


def _version_of(package: Path) -> str:
    file = SourceFile(package / "__init__.py", f"{PACKAGE}/__init__.py")
    for node in file.tree.body:
        if isinstance(node, ast.Assign) and any(_is_name(target, "__version__") for target in node.targets):
            if isinstance(node.value, ast.Constant):
                return str(node.value.value)
    return "unknown"
