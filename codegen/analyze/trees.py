"""LibCST's trees of single methods, parsed when they are asked for: a method costs a tenth of what its class would.

Most questions are answered by `ast`, which has read the file already; LibCST is for what is moved as text.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from ..facts import Ref, Span
from ..memo import remembered
from ..source import Source


def walk(root: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Every node below and including `root`, parents first, without the blanks between them.

    LibCST's own visit makes every node anew, whether or not it changes: this takes a fifth of the time.
    """
    pending: list[object] = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, cst.CSTNode):
            yield node
            pending.extend(getattr(node, name) for name in _parts(type(node)))
        elif isinstance(node, list | tuple):
            pending.extend(reversed(node))


@cache
def _parts(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    """The fields that hold nodes or lists of them, the last first."""
    names = [field.name for field in dataclasses.fields(kind)]
    return tuple(name for name in reversed(names) if "whitespace" not in name and name not in ("lpar", "rpar"))


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One method of one class. Lines of the tree plus `offset` are lines of the file."""

    ref: Ref
    text: str
    node: ast.FunctionDef
    offset: int

    @cached_property
    def wrapper(self) -> MetadataWrapper:
        return _parsed(self.text)

    @cached_property
    def method(self) -> cst.FunctionDef:
        holder = cst.ensure_type(self.wrapper.module.body[0], cst.ClassDef)
        return cst.ensure_type(holder.body.body[0], cst.FunctionDef)

    @cached_property
    def positions(self) -> Mapping[cst.CSTNode, CodeRange]:
        return self.wrapper.resolve(PositionProvider)

    @property
    def has_trailing_comma(self) -> bool:
        """Whether the signature ends with a comma, which makes formatters lay it out one parameter to a line."""
        lines = self.text.encode().split(b"\n")
        last = max(
            (node for node in ast.walk(self.node.args) if isinstance(node, ast.arg | ast.expr)),
            key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0),
        )
        end = (last.end_lineno or last.lineno) - self.offset - 1
        rest = b"\n".join([lines[end][last.end_col_offset :], *lines[end + 1 :]])
        return re.match(rb"[)\s]*(#[^\n]*\s*)*,", rest) is not None

    def first_line(self, node: cst.CSTNode) -> int:
        return self.positions[node].start.line + self.offset

    def last_line(self, node: cst.CSTNode) -> int:
        return self.positions[node].end.line + self.offset

    def span(self, node: cst.CSTNode) -> Span:
        return Span(file=self.ref.file, line=self.first_line(node))

    def code(self, node: cst.CSTNode) -> str:
        return self.wrapper.module.code_for_node(node)


class Trees:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.memo: dict[object, Any] = {}

    @remembered
    def method(self, ref: Ref, name: str) -> Tree:
        """The method of that name in the body of the class `ref`; the last one counts, as in Python."""
        file, node = self.source.file(ref.file), self.source.definition(ref).node
        found = [entry for entry in node.body if isinstance(entry, ast.FunctionDef) and entry.name == name][-1]
        first = min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])
        # Under a class statement of its own, so that the lines can stay as they are.
        text = "class _:\n" + "".join(file.lines[first - 1 : found.end_lineno])
        return Tree(ref=ref, text=text, node=found, offset=first - 2)


@lru_cache(maxsize=64)
def _parsed(text: str) -> MetadataWrapper:
    """Analysis and rewrites ask for the same methods, and Transformers repeats many of them from file to file."""
    return MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
