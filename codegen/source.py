"""Finds and reads modeling files, of an installed Transformers or of a folder, without importing any of it."""

from __future__ import annotations

import ast
import difflib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import VgenError
from .facts import Ref, Span
from .files import COPY, Definition, Files, Import, SourceFile
from .local import Local
from .memo import remembered

__all__ = ["PACKAGE", "Definition", "Import", "Source", "SourceFile", "folder", "installed"]

PACKAGE = "transformers"
"""The package whose models are built."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A Transformers to read: `root` is the folder that holds the package, `version` what its metadata says. With `local`, also
    the files of one model outside of it.

    Compared by identity: what was read from one object is never taken for what another would read.
    """

    root: Path
    version: str
    local: Local | None = None
    memo: dict[object, Any] = field(default_factory=dict, repr=False)
    _store: Files = field(default_factory=Files, repr=False)
    _files: dict[str, SourceFile | None] = field(default_factory=dict, repr=False)

    def fresh(self) -> Source:
        """The same Transformers for one more model: `read` starts empty, and what was found before isn't kept in memory.

        The files that were read last are shared.
        """
        return Source(root=self.root, version=self.version, local=self.local, _store=self._store)

    def with_local(self, local: Local) -> Source:
        """The same Transformers, with one model outside of it."""
        return Source(root=self.root, version=self.version, local=local)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Errors about the files of `local` name them as the user did."""
        try:
            yield
        except VgenError as error:
            if self.local is None:
                raise
            raise self.local.placed(error) from error

    @property
    def read(self) -> Mapping[str, str | None]:
        """The digest of every file that was read so far, by its path from the root; None where there is no such file."""
        return {rel: file.digest if file is not None else None for rel, file in self._files.items()}

    def forget(self) -> None:
        """Let go of everything that was read and found: whoever holds this source by a cycle of references holds no more."""
        self.memo.clear()
        self._files.clear()

    def file(self, rel: str) -> SourceFile:
        found = self.find_file(rel)
        if found is None:
            raise VgenError("missing-file", f"{self.root / rel} doesn't exist.", hint="Reinstall Transformers.")
        return found

    def find_file(self, rel: str) -> SourceFile | None:
        if rel not in self._files:
            path = self._path(rel)
            self._files[rel] = self._store.read(path, rel) if path is not None else None
        return self._files[rel]

    def _path(self, rel: str) -> Path | None:
        if not rel.startswith(f"{COPY}/"):
            return self.root / rel
        return self.local.path(rel) if self.local is not None else None

    def module_file(self, module: str) -> SourceFile | None:
        """The file of a dotted module of the package, or None for a module outside it."""
        if module == COPY or module.startswith(f"{COPY}."):
            path = COPY + module.removeprefix(COPY).replace(".", "/")
        elif module.partition(".")[0] == PACKAGE:
            path = module.replace(".", "/")
        else:
            return None
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
            if imported.module == PACKAGE:
                return self.public(imported.name)
            target = self.module_file(imported.module)
            return self.resolve(imported.name, target, _seen=_seen | {key}) if target is not None else None
        for module in file.star_imports:
            target = self.module_file(module)
            found = self.resolve(name, target, _seen=_seen | {key}) if target is not None else None
            if found is not None:
                return found
        return None

    @remembered
    def public(self, name: str) -> Ref | None:
        """What `from transformers import name` gives. Models are found by their text: to follow the imports would be to read
        every model there is."""
        file = self.file(f"{PACKAGE}/__init__.py")
        imported = file.imports.get(name)
        if imported is not None and imported.name is not None and imported.module != PACKAGE:
            target = self.module_file(imported.module)
            return self.resolve(imported.name, target) if target is not None else None
        pattern = re.compile(rf"^class {re.escape(name)}\b".encode(), re.MULTILINE)
        for path in sorted((self.root / PACKAGE / "models").glob("*/*.py")):
            if path.name.startswith(("modeling_", "configuration_")) and pattern.search(path.read_bytes()):
                return Ref(file=path.relative_to(self.root).as_posix(), name=name)
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

    @remembered
    def auto_models(self, auto_class: str) -> dict[str, str]:
        """Model type → the class that one of Transformers' auto classes makes of it; the first where there are several."""
        file = self.file(f"{PACKAGE}/models/auto/modeling_auto.py")
        definition = file.definitions.get(auto_class)
        mapping = None
        for node in definition.node.body if definition is not None else ():
            if isinstance(node, ast.Assign) and any(_is_name(target, "_model_mapping") for target in node.targets):
                mapping = node.value.id if isinstance(node.value, ast.Name) else None
        return self._table(f"{mapping}_NAMES") if mapping is not None else {}

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
        if self.local is not None:
            return self.file(f"{COPY}/{self.local.main}")
        return self.file(f"{PACKAGE}/models/{model}/modeling_{model}.py")

    def entry_files(self, model: str) -> tuple[SourceFile, ...]:
        """The files whose models a package offers, the modeling file first: of a model outside of Transformers every file, for
        its parts have files of their own."""
        main = self.modeling_file(model)
        names = sorted(self.local.files) if self.local is not None else ()
        return (main, *(file for name in names if (file := self.file(f"{COPY}/{name}")) is not main))

    def size(self, model: str) -> int:
        """The length of a model's modeling file in bytes, without reading it."""
        return (self.root / PACKAGE / "models" / model / f"modeling_{model}.py").stat().st_size

    def _table(self, name: str) -> dict[str, str]:
        """A mapping of Transformers' auto classes, read as a literal from the files that define or extend it."""
        table: dict[str, str] = {}
        for stem in ("auto_mappings", "configuration_auto", "modeling_auto"):
            file = self.find_file(f"{PACKAGE}/models/auto/{stem}.py")
            table.update(_entries(file, name) if file is not None else {})
        return table


@remembered
def _entries(file: SourceFile, table: str) -> dict[str, str]:
    """What one file gives a table or adds to it."""
    found: dict[str, str] = {}
    for node in file.tree.body:
        if isinstance(node, ast.Assign) and any(_is_name(target, table) for target in node.targets):
            found.update(_pairs(node.value))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if isinstance(call.func, ast.Attribute) and _is_name(call.func.value, table):
                found.update(_pairs(call))
    return found


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
