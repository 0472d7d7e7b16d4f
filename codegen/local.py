"""A modeling file that isn't part of Transformers: which files belong to it, found by reading them, never by importing.

The package that is built for it holds a copy of each, byte for byte, in a subpackage named `upstream`: what was read is what
runs. Here these files have the paths of those copies, with a leading dot, which makes their module names relative to the
package: `.upstream/modeling_foo.py` is the module `.upstream.modeling_foo`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import VgenError
from .facts import Span
from .files import COPY, SourceFile

COPIES = COPY.removeprefix(".")
"""The folder of the copies in a package."""
PACKAGE_FILE = "__init__.py"

_CAUGHT = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A modeling file outside of Transformers, and the files that it needs.

    Attributes:
        name: Of the package to build.
        given: The path that stands for it in messages: a modeling file or a checkpoint folder.
        folder: The folder of the files.
        main: The modeling file, relative to `folder`.
        files: Every file to copy, relative to `folder`, with forward slashes; what a file imports stands before it.
        origin: Where the file or checkpoint lies, seen from the package's folder; None where that would say something about
            this machine.
    """

    name: str
    given: Path
    folder: Path
    main: str
    files: tuple[str, ...]
    origin: str | None = None

    def path(self, rel: str) -> Path | None:
        """The file behind `.upstream/…`, None for one that isn't copied."""
        name = rel.removeprefix(f"{COPY}/")
        return self.folder / name if name in self.files else None

    def shown(self, rel: str) -> str:
        """A copy's path as the file that the user has."""
        base = self.given.parent if self.given.suffix == ".py" else self.given
        return (base / rel.removeprefix(f"{COPY}/")).as_posix() if rel.startswith(f"{COPY}/") else rel

    def placed(self, error: VgenError) -> VgenError:
        """An error about a copy as one about the file that the user has."""
        pattern = rf"{re.escape(COPY)}/[\w./]*\w"
        message = re.sub(pattern, lambda match: self.shown(match[0]), error.message)
        span = error.span and Span(file=self.shown(error.span.file), line=error.span.line, column=error.span.column)
        return VgenError(error.code, message, span=span, hint=error.hint)

    def copies(self) -> Mapping[str, str]:
        """The text of every copy, by its path in the package.

        Raises:
            VgenError: `unreadable`.
        """
        texts = {f"{COPIES}/{name}": _read(self.folder / name, name).content.decode() for name in self.files}
        # Without the upstream package's own, which is copied where a file imports from it.
        texts.setdefault(
            f"{COPIES}/{PACKAGE_FILE}", '"""Copies of the files that were read by the build, byte for byte."""\n'
        )
        return texts


def collect(folder: Path, roots: Sequence[str], shown: Path) -> tuple[str, ...]:
    """The files in `roots` and all that they import relatively, each after what it imports.

    Args:
        folder: What relative imports may not lead out of.
        roots: Paths relative to `folder`.
        shown: The folder as the user named it, for messages.

    Raises:
        VgenError: `unreadable`, `syntax`; `outside` for an import or a link that leads out of the folder, `missing-module`
            for one that leads nowhere, `absolute-import` for one that finds its file only where the folder is on the path.
    """
    found: dict[str, None] = {}
    visiting: set[str] = set()

    def add(name: str) -> None:
        if name in visiting:
            return
        visiting.add(name)
        for needed in _needed(folder, name, shown):
            add(needed)
        found[name] = None

    for root in roots:
        _require_inside(folder, root, Span(file=(shown / root).as_posix(), line=1))
        add(root)
    return tuple(found)


def _read(path: Path, name: str) -> SourceFile:
    return SourceFile(path, f"{COPY}/{name}")


def _needed(folder: Path, name: str, shown: Path) -> Iterator[str]:
    """The files of the modules that one file imports relatively."""
    file, place = _read(folder / name, name), (shown / name).as_posix()
    try:
        tree = file.tree
    except VgenError as error:
        raise VgenError(error.code, error.message, span=_in(place, error.span), hint=error.hint) from error
    optional = {id(node) for node in _optional(tree)}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    _refuse_sibling(folder, name, alias.name, Span(file=place, line=node.lineno))
            case ast.ImportFrom(level=0, module=str(module)):
                _refuse_sibling(folder, name, module, Span(file=place, line=node.lineno))
            case ast.ImportFrom():
                try:
                    yield from _modules(folder, name, node, place)
                except VgenError as error:
                    # What the file itself does without.
                    if error.code != "missing-module" or id(node) not in optional:
                        raise


def _modules(folder: Path, name: str, node: ast.ImportFrom, place: str) -> tuple[str, ...]:
    """The files that one relative import runs."""
    span = Span(file=place, line=node.lineno)
    package = PurePosixPath(name).parent.parts
    text = f"from {'.' * node.level}{node.module or ''} import {', '.join(alias.name for alias in node.names)}"
    if node.level - 1 > len(package):
        raise VgenError(
            "outside",
            f"`{text}` leads out of the folder of the modeling file: only what lies in that folder is copied.",
            span=span,
            hint="Put what it needs beside the modeling file, or into a package that is installed.",
        )
    parts = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
    found: dict[str, None] = {}
    # The packages on the way run as well.
    for depth in range(1, len(parts)):
        initial = "/".join((*parts[:depth], PACKAGE_FILE))
        if (folder / initial).is_file():
            found[initial] = None
    module = _module(folder, parts) if parts else None
    if module is not None and not module.endswith(f"/{PACKAGE_FILE}"):
        found[module] = None
    elif module is None and not (folder.joinpath(*parts)).is_dir():
        raise _missing(text, "/".join(parts), span)
    else:
        initial = "/".join((*parts, PACKAGE_FILE))
        has_initial = (folder / initial).is_file()
        if has_initial and parts:
            found[initial] = None
        for alias in node.names:
            inner = _module(folder, (*parts, alias.name))
            if inner is not None:
                found[inner] = None
            elif has_initial:
                found[initial] = None
            else:
                raise _missing(text, "/".join((*parts, alias.name)), span)
    for needed in found:
        _require_inside(folder, needed, span)
    return tuple(found)


def _missing(text: str, path: str, span: Span) -> VgenError:
    return VgenError(
        "missing-module",
        f"`{text}` needs {path}.py, which isn't in the folder.",
        span=span,
        hint="Add the file, or put the import into `try` … `except ImportError` where the model does without.",
    )


def _module(folder: Path, parts: Sequence[str]) -> str | None:
    for candidate in ("/".join(parts) + ".py", "/".join((*parts, PACKAGE_FILE))):
        if (folder / candidate).is_file():
            return candidate
    return None


def _require_inside(folder: Path, name: str, span: Span) -> None:
    """Raise where a link leads out of the folder. A snapshot of the hub's cache is links to its `blobs`."""
    root, path = folder.resolve(), (folder / name).resolve()
    is_blob = root.parent.name == "snapshots" and path.parent == root.parents[1] / "blobs"
    if not (path.is_relative_to(root) or is_blob):
        raise VgenError(
            "outside",
            f"{name} is a link that leads out of the folder: only what lies in the folder is copied.",
            span=span,
            hint="Put the file itself there.",
        )


def _refuse_sibling(folder: Path, name: str, module: str, span: Span) -> None:
    beside = (folder / name).parent / f"{module.partition('.')[0]}.py"
    if beside.is_file():
        raise VgenError(
            "absolute-import",
            f"This imports {beside.name}, which lies beside it, by an absolute name: that works only where the folder is on "
            f"Python's path.",
            span=span,
            hint=f"Import from `.{module}`.",
        )


def _optional(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that may fail to import: in a `try` that catches it, or for type checkers only."""
    for node in ast.walk(tree):
        match node:
            case ast.Try(body=body, handlers=handlers) if any(map(_catches, handlers)):
                yield from (inner for statement in body for inner in ast.walk(statement))
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"), body=body):
                yield from (inner for statement in body for inner in ast.walk(statement))


def _catches(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in _CAUGHT) for kind in kinds)


def _in(place: str, span: Span | None) -> Span:
    return Span(file=place, line=span.line if span else 1)
