"""LibCST's trees of single methods, each parsed once: a method costs a tenth of what its class would."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from ..facts import Ref, Span
from ..source import Source


def walk(root: cst.CSTNode) -> tuple[cst.CSTNode, ...]:
    """Every node below and including `root`, parents first."""
    collector = _Collector()
    root.visit(collector)
    return tuple(collector.found)


class _Collector(cst.CSTVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[cst.CSTNode] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        self.found.append(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One method of one class. Lines of the tree plus `offset` are lines of the file."""

    ref: Ref
    text: str
    wrapper: MetadataWrapper
    method: cst.FunctionDef
    offset: int

    @cached_property
    def positions(self) -> Mapping[cst.CSTNode, CodeRange]:
        return self.wrapper.resolve(PositionProvider)

    @property
    def has_trailing_comma(self) -> bool:
        """Whether the signature ends with a comma, which makes formatters lay it out one parameter to a line."""
        declared = self.method.params
        last = declared.star_kwarg or (*declared.params, *declared.kwonly_params)[-1]
        return isinstance(last.comma, cst.Comma)

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
        self.method = cache(self._method)

    def _method(self, ref: Ref, name: str) -> Tree:
        """The method of that name in the body of the class `ref`; the last one counts, as in Python."""
        file, node = self.source.file(ref.file), self.source.definition(ref).node
        found = [entry for entry in node.body if isinstance(entry, ast.FunctionDef) and entry.name == name][-1]
        first = min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])
        # Under a class statement of its own, so that the lines can stay as they are.
        text = "class _:\n" + "".join(file.lines[first - 1 : found.end_lineno])
        wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
        holder = cst.ensure_type(wrapper.module.body[0], cst.ClassDef)
        method = cst.ensure_type(holder.body.body[0], cst.FunctionDef)
        return Tree(ref=ref, text=text, wrapper=wrapper, method=method, offset=first - 2)
