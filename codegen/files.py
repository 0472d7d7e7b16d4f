"""One Python file of a Transformers: an index of its top-level definitions, and the text behind each node.

The index is made by the standard library's `ast`, which reads a file ten times faster than LibCST. LibCST then parses single
methods, the ones that analysis asks for: see `codegen.analyze.trees`.
"""

from __future__ import annotations

import ast
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import VgenError
from .facts import Span

COPY = ".upstream"
"""Where the files of a model outside of Transformers are: copies in the package that is built for it. The dot makes the names
of their modules relative to that package, see `codegen.local`."""


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
        self.memo: dict[object, Any] = {}
        try:
            content = path.read_bytes()
            self.content = content
            self.digest = hashlib.sha256(content).hexdigest()
            """Of the file's bytes."""
            # As `open` would read it, and Python: every kind of line end is one newline, a byte order mark is nothing.
            self.text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
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
    def tree(self) -> ast.Module:
        try:
            return ast.parse(self.text)
        except (SyntaxError, ValueError) as error:
            # Python 3.11 says with a ValueError that there are null bytes.
            message, line = (error.msg, error.lineno) if isinstance(error, SyntaxError) else (str(error), 1)
            theirs = "" if self.is_copy else ", or reinstall Transformers if it isn't yours"
            raise VgenError(
                "syntax",
                f"Python can't parse this file: {message}.",
                span=Span(file=self.rel, line=line or 1),
                hint=f"Correct the file{theirs}.",
            ) from error

    @property
    def is_copy(self) -> bool:
        """Whether the file isn't part of Transformers."""
        return self.rel.startswith(f"{COPY}/")

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
        """The modules of every `from x import *`, in order."""
        return tuple(
            self.absolute(node.module or "", level=node.level)
            for node in _top_level(self.tree.body)
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
        )

    @cached_property
    def assigned(self) -> frozenset[str]:
        """Names that top-level assignments bind."""
        names: set[str] = set()
        for node in _top_level(self.tree.body):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for inner in (inner for target in targets if target is not None for inner in ast.walk(target)):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    names.add(inner.id)
        return frozenset(names)

    @cached_property
    def tried(self) -> frozenset[str]:
        """Names that an import in a `try` binds: where it fails, they are missing or something else."""
        names: set[str] = set()
        for node in _top_level(self.tree.body):
            for inner in (
                (inner for statement in node.body for inner in ast.walk(statement))
                if isinstance(node, ast.Try)
                else ()
            ):
                if isinstance(inner, ast.Import | ast.ImportFrom):
                    names.update(alias.asname or alias.name.partition(".")[0] for alias in inner.names)
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

    def segment(self, node: ast.expr) -> str:
        """The text of an expression, as it stands in the file; parentheses around it are no part of it."""
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        # Columns count bytes of UTF-8.
        lines = [line.encode() for line in self.lines[first : last + 1]]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return b"".join(lines).decode()

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


class Files:
    """The files that were read last, for whoever asks next: a syntax tree takes some forty times its text.

    `limit` is in characters of text; what is still in use elsewhere stays in memory beyond it.
    """

    def __init__(self, limit: int = 1_000_000) -> None:
        self.limit = limit
        self._files: OrderedDict[Path, SourceFile] = OrderedDict()
        self._size = 0

    def read(self, path: Path, rel: str) -> SourceFile | None:
        """The file, None where there is none.

        Raises `VgenError`: "unreadable".
        """
        file = self._files.get(path)
        if file is not None:
            self._files.move_to_end(path)
            return file
        if not path.is_file():
            return None
        file = self._files[path] = SourceFile(path, rel)
        self._size += len(file.text)
        while self._size > self.limit and len(self._files) > 1:
            self._size -= len(self._files.popitem(last=False)[1].text)
        return file
