"""Where a forward says something about its arguments: docstrings of its own and of all models, and the statements of its body."""

from __future__ import annotations

import ast
import re
from functools import lru_cache

from ..memo import remembered
from ..source import Source, SourceFile

SHARED = "transformers/utils/auto_docstring.py"
SHAPE = re.compile(r"of shape\s*`{1,2}\s*[\(\[]([^`]*?)[\)\]]")
TENSOR_ATTRIBUTES = frozenset(
    {"shape", "size", "dtype", "device", "ndim", "dim", "to", "view", "reshape", "new_ones", "new_zeros"}
)

Said = tuple[str, int]
"""A text of the source and its line."""


@lru_cache(maxsize=1)
def documented(method: ast.FunctionDef) -> dict[str, Said]:
    """Argument → shape, or its type where that is a tensor without a shape, from lines like "name (`torch.Tensor` of shape
    `(a, b)`, …)", which may go on in the next line."""
    docstring = ast.get_docstring(method, clean=False) or ""
    found: dict[str, Said] = {}
    for match in re.finditer(r"^\s*(\w+)\s*\((`[^\n]*(?:\n\s*shape [^\n]*)?)\)?:", docstring, re.MULTILINE):
        text = " ".join(match.group(2).split())
        shape, tensor = SHAPE.search(text), re.match(r"`torch\.\w*Tensor`", text)
        said = f"({shape.group(1)})" if shape is not None else tensor.group() if tensor is not None else None
        if said is not None:
            found.setdefault(match.group(1), (said, docstring_line(method, docstring, match.start(1))))
    return found


def docstring_line(function: ast.FunctionDef, docstring: str, position: int) -> int:
    """The line of a place in a function's docstring: it begins below a signature of any length."""
    return function.body[0].lineno + docstring[:position].count("\n")


def shared(source: Source, name: str, *, is_tuple: bool) -> Said | None:
    """The shape of an argument in `auto_docstring`'s table of arguments that models share; that of each of several tensors stands
    in its description."""
    file = source.find_file(SHARED)
    return _shared_in(file).get((name, is_tuple)) if file is not None else None


@remembered
def _shared_in(file: SourceFile) -> dict[tuple[str, bool], Said]:
    found: dict[tuple[str, bool], Said] = {}
    name, inside = "", False
    # Line by line: the file is long, and parsing it would take as long as the rest of a build.
    for number, line in enumerate(file.lines, start=1):
        if line.startswith("class "):
            inside = line.startswith("class ModelArgs")
        elif inside and (assigned := re.match(r"    (\w+) = \{", line)) is not None:
            name = assigned.group(1)
        elif inside and (shape := SHAPE.search(line)) is not None:
            is_own = line.lstrip().startswith('"shape":')
            found.setdefault((name, not is_own), (f"({shape.group(1)})", number))
    return found


def rank_test(method: ast.FunctionDef, name: str) -> Said | None:
    """The first comparison of `name.ndim`, `name.dim()` or `len(name.shape)` in the body."""
    for node, text in _tests_and_bindings(method)[0]:
        if text in (f"{name}.ndim", f"{name}.dim()", f"len({name}.shape)"):
            return ast.unparse(node), node.lineno
    return None


def unpacked(method: ast.FunctionDef, name: str) -> Said | None:
    """`a, b = name.shape` or `name.size()` before the name is bound again: the names, as text."""
    for node, text in _tests_and_bindings(method)[1]:
        target = node.targets[0]
        if isinstance(target, ast.Tuple):
            if text in (f"{name}.shape", f"{name}.size()"):
                if any(isinstance(each, ast.Starred) for each in target.elts):
                    return None
                return f"({ast.unparse(target).strip('()')})", node.lineno
            if any(isinstance(each, ast.Name) and each.id == name for each in target.elts):
                return None
        elif any(isinstance(each, ast.Name) and each.id == name for each in node.targets):
            return None
    return None


def used_as_tensor(method: ast.FunctionDef, name: str) -> Said | None:
    """The first read of something that tensors have."""
    return _touched(method).get(name)


@lru_cache(maxsize=1)
def _touched(method: ast.FunctionDef) -> dict[str, Said]:
    found: dict[str, Said] = {}
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and node.attr in TENSOR_ATTRIBUTES and isinstance(node.value, ast.Name):
            found.setdefault(node.value.id, (ast.unparse(node), node.lineno))
    return found


@lru_cache(maxsize=1)
def _tests_and_bindings(
    method: ast.FunctionDef,
) -> tuple[tuple[tuple[ast.Compare, str], ...], tuple[tuple[ast.Assign, str], ...]]:
    """Comparisons with their left side, assignments with their right side, as text: asked for with every parameter."""
    nodes = tuple(ast.walk(method))
    return (
        tuple((node, ast.unparse(node.left)) for node in nodes if isinstance(node, ast.Compare)),
        tuple((node, _short_text(node.value)) for node in nodes if isinstance(node, ast.Assign)),
    )


def _short_text(value: ast.expr) -> str:
    """The text of an attribute or of a call without arguments; nothing else is asked about."""
    plain = isinstance(value, ast.Attribute) or (isinstance(value, ast.Call) and not value.args)
    return ast.unparse(value) if plain else ""
