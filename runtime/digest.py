# SPDX-License-Identifier: Apache-2.0
"""Digests of upstream definitions: written into `vgen.lock` by the build, compared by generated packages.

Standard library only, because the build imports this without torch or Transformers.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Definition:
    """A top-level class or function of a source file.

    Attributes:
        line: 1-based line of its first decorator, or of its `class` or `def`.
        digest: sha256 of its text in hex, from the first decorator through the last line, without trailing
            whitespace, lines joined by a newline. A name that is defined more than once (in both arms of an `if`, say)
            has the line of its first definition and the digest of all of them in order.
    """

    line: int
    digest: str


def text_digest(text: str) -> str:
    """The sha256 of a text in UTF-8, as hex."""
    return bytes_digest(text.encode())


def bytes_digest(data: bytes) -> str:
    """The sha256 of a file's bytes, as hex: what the `[files]` table of `vgen.lock` holds."""
    return hashlib.sha256(data).hexdigest()


def definitions(source_text: str, names: Iterable[str], *, tree: ast.Module | None = None) -> dict[str, Definition]:
    """Find top-level classes and functions by name.

    Args:
        source_text: A Python file.
        names: The names to look for; one that isn't defined is left out of the result.
        tree: What the text parses to, where that is known.

    Raises:
        SyntaxError: The text isn't Python.
    """
    wanted = set(names)
    # Not splitlines(), which also splits at form feeds, where the parser doesn't count a line.
    lines = source_text.replace("\r\n", "\n").split("\n")
    first: dict[str, int] = {}
    texts: dict[str, list[str]] = {}
    for node in _top_level((tree or ast.parse(source_text)).body):
        if node.name in wanted:
            line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            text = "\n".join(each.rstrip() for each in lines[line - 1 : node.end_lineno])
            first.setdefault(node.name, line)
            texts.setdefault(node.name, []).append(text)
    return {name: Definition(first[name], text_digest("\n".join(texts[name]))) for name in sorted(texts)}


def class_digests(source_text: str, names: Iterable[str], *, tree: ast.Module | None = None) -> dict[str, str]:
    """The digests of top-level classes and functions by name: a table of `vgen.lock`. See `definitions`."""
    return {name: definition.digest for name, definition in definitions(source_text, names, tree=tree).items()}


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node
            case ast.If():
                yield from _top_level([*node.body, *node.orelse])
            case ast.Try():
                yield from _top_level([*node.body, *(each for h in node.handlers for each in h.body), *node.orelse])
            case ast.With():
                yield from _top_level(node.body)
            case _:
                pass
