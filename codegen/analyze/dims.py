"""The shape of every tensor that enters a forward, with the evidence for it.

Evidence counts in this order: how the body uses the argument, the forward's own docstring, the arguments that `auto_docstring`
shares between models. A helper's docstring speaks for what the helper returns. Names tie dimensions only within one
docstring: two docstrings that say `total_tokens` need not mean the same number.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache

from ..facts import ArgumentShape, Dim, Evidence, EvidenceSource, Parameter, PrologueCall, Ref, Span
from ..memo import remembered
from ..source import Source, SourceFile
from .prologue import helper_chain, popped_keys

STATIC = re.compile(
    r"(.*_)?(hidden|embed\w*|emb|head|model|feature|channel|inner|intermediate|text|vision|projection)_?(size|dim|dims)$"
    r"|d_model|dim|channels?|num_channels|num_(attention_)?heads|vocab_size|config\..*|(num_)?mel_bins|num_codebooks"
)
"""Names of dimensions that a configuration fixes: they don't change from call to call."""

SHAPE = re.compile(r"of shape\s*`{1,2}\s*[\(\[]([^`]*?)[\)\]]")
RETURNED = re.compile(r"`(\w+)`:\s*`\(([^`]*?)\)`([^\n]*)")
ALTERNATIVE = re.compile(r"`\(([^`]*?)\)`")
SHARED = "transformers/utils/auto_docstring.py"


def argument_shapes(
    source: Source, ref: Ref, method: ast.FunctionDef, parameters: tuple[Parameter, ...], shared: bool
) -> tuple[ArgumentShape, ...]:
    """The shapes of a forward's parameters; `shared` says whether `auto_docstring` documents it."""
    documented = _documented(ast.get_docstring(method, clean=False) or "")
    takes_cache = any(parameter.name == "past_key_values" for parameter in parameters)
    line = method.lineno
    found = []
    for parameter in parameters:
        if parameter.is_variadic or "Tensor" not in (parameter.annotation or "Tensor"):
            continue
        name = parameter.name
        evidence = []
        if name in documented:
            text, offset = documented[name]
            evidence.append(
                Evidence(source=EvidenceSource.OWN_DOCSTRING, text=text, span=Span(file=ref.file, line=line + offset))
            )
        elif shared and (entry := _shared_arguments(source).get(name)) is not None:
            text, shared_line = entry
            evidence.append(
                Evidence(source=EvidenceSource.SHARED_DOCSTRING, text=text, span=Span(file=SHARED, line=shared_line))
            )
        ranks = _rank_tests(method, name)
        unpacked = _unpacked(method, name)
        if unpacked is not None:
            text, at = unpacked
            evidence.append(Evidence(source=EvidenceSource.BODY, text=text, span=Span(file=ref.file, line=at)))
        dims = _dims(evidence[0].text, name) if evidence else None
        disagreement = None
        if ranks and dims is not None:
            text, at = ranks[0]
            evidence.append(Evidence(source=EvidenceSource.BODY, text=text, span=Span(file=ref.file, line=at)))
            disagreement = f"the body asks for its number of dimensions (`{text}`): every dimension may change"
            dims = None
        elif unpacked is not None and dims is not None and len(_split(unpacked[0])) != len(dims):
            disagreement = f"the docstring gives {len(dims)} dimensions, the body unpacks {len(_split(unpacked[0]))}"
            dims = None
        if dims is not None and name.startswith("encoder_"):
            # What an encoder computed has a length of its own, whatever the shared docstring calls it.
            dims = tuple(f"encoder_{dim}" if isinstance(dim, str) and "batch" not in dim else dim for dim in dims)
        elif dims is not None and takes_cache and "mask" in name:
            # A mask covers what the cache holds as well as what this call adds.
            dims = (*dims[:-1], "kv_length")
        found.append(
            ArgumentShape(name=name, is_tensor=True, dims=dims, evidence=tuple(evidence), disagreement=disagreement)
        )
    return tuple(found)


def result_shapes(source: Source, call: PrologueCall) -> tuple[ArgumentShape, ...]:
    """The shapes of what a prologue call computes, from the docstrings of the helpers behind it."""
    found = []
    for target, key in zip(call.targets, call.keys, strict=True):
        helper, index = _origin(source, call.helper, key)
        definition = source.definition(helper)
        assert isinstance(definition.node, ast.FunctionDef)
        annotation = _result_annotation(definition.node, index)
        docstring = ast.get_docstring(definition.node, clean=False) or ""
        dims, evidence = None, []
        for match in RETURNED.finditer(docstring):
            if match.group(1) == key:
                line = definition.def_line + 1 + docstring[: match.start()].count("\n")
                dims = _dims(match.group(2), target)
                for other in ALTERNATIVE.finditer(match.group(3)):
                    dims = _common(dims, _dims(other.group(1), target))
                evidence = [
                    Evidence(
                        source=EvidenceSource.HELPER_DOCSTRING,
                        text=f"({match.group(2)}){match.group(3)}".strip(),
                        span=Span(file=helper.file, line=line),
                    )
                ]
                break
        is_int = "Tensor" not in annotation and re.search(r"\bint\b", annotation) is not None
        if is_int:
            evidence = [
                Evidence(source=EvidenceSource.ANNOTATION, text=annotation, span=source.span(helper)),
            ]
        found.append(
            ArgumentShape(
                name=target,
                is_tensor=not is_int,
                is_python_int=is_int,
                dims=None if is_int else dims,
                evidence=tuple(evidence),
            )
        )
    return tuple(found)


def _documented(docstring: str) -> dict[str, tuple[str, int]]:
    """Argument → (shape text, lines below the `def`), from lines like "name (`torch.Tensor` of shape `(a, b)`, …)"."""
    found: dict[str, tuple[str, int]] = {}
    for match in re.finditer(r"^\s*(\w+)\s*\(([^\n]*)\)?:", docstring, re.MULTILINE):
        shape = SHAPE.search(match.group(2))
        if shape is not None:
            found.setdefault(match.group(1), (f"({shape.group(1)})", 1 + docstring[: match.start()].count("\n")))
    return found


def _shared_arguments(source: Source) -> dict[str, tuple[str, int]]:
    """Argument → (shape text, line) of `auto_docstring`'s table of arguments that models share."""
    file = source.find_file(SHARED)
    return _shared_in(file) if file is not None else {}


@remembered
def _shared_in(file: SourceFile) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    name, inside = "", False
    # Line by line: the file is long, and parsing it would take as long as the rest of a build.
    for number, line in enumerate(file.lines, start=1):
        if line.startswith("class "):
            inside = line.startswith("class ModelArgs")
        elif inside and (assigned := re.match(r"    (\w+) = \{", line)) is not None:
            name = assigned.group(1)
        elif inside and line.lstrip().startswith('"shape":') and (shape := SHAPE.search(line)) is not None:
            found[name] = (f"({shape.group(1)})", number)
    return found


def _rank_tests(method: ast.FunctionDef, name: str) -> list[tuple[str, int]]:
    """Comparisons of `name.ndim`, `name.dim()` or `len(name.shape)` in the body."""
    found = []
    for node, text in _tests_and_bindings(method)[0]:
        if text in (f"{name}.ndim", f"{name}.dim()", f"len({name}.shape)"):
            found.append((ast.unparse(node), node.lineno))
    return found


def _unpacked(method: ast.FunctionDef, name: str) -> tuple[str, int] | None:
    """`a, b = name.shape` or `name.size()` before the name is bound again: the names, as text."""
    for node, text in _tests_and_bindings(method)[1]:
        if isinstance(node.targets[0], ast.Tuple):
            if text in (f"{name}.shape", f"{name}.size()"):
                return f"({ast.unparse(node.targets[0]).strip('()')})", node.lineno
            if any(isinstance(target, ast.Name) and target.id == name for target in node.targets[0].elts):
                return None
        elif any(isinstance(target, ast.Name) and target.id == name for target in node.targets):
            return None
    return None


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


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]


def _dims(text: str, argument: str) -> tuple[Dim, ...] | None:
    """The dimensions that a shape's text names; None where it isn't a plain list of names and numbers."""
    dims: list[Dim] = []
    for position, part in enumerate(_split(text)):
        if part.isdigit():
            dims.append(int(part))
        elif STATIC.fullmatch(part):
            dims.append(None)
        elif part == "_":
            dims.append(f"{argument}_{position}")
        elif re.fullmatch(r"[\w.]+(\s*[+*]\s*\w+)?", part):
            dims.append(re.sub(r"\W+", "_", part.replace("+", "plus").replace("*", "times")))
        else:
            return None
    return _unequal(tuple(dims)) if dims else None


def _unequal(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """A name that a shape has twice stands for two sizes: `(image_size, image_size)` need not be square."""
    twice = [dim for dim in dims if isinstance(dim, str) and dims.count(dim) == 2]
    if not twice:
        return dims
    stem = twice[0].removesuffix("_size")
    names = iter((f"{stem}_height", f"{stem}_width"))
    return tuple(next(names) if dim == twice[0] else dim for dim in dims)


def _common(one: tuple[Dim, ...] | None, other: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """What two alternatives of one docstring agree on: fixed sizes that differ are fixed, of unknown size."""
    if one is None or other is None or len(one) != len(other):
        return one
    return tuple(
        a if a == b else (None if isinstance(a, int) and isinstance(b, int) else a)
        for a, b in zip(one, other, strict=True)
    )


def _origin(source: Source, helper: Ref, key: str) -> tuple[Ref, int]:
    """The helper that computes the value for `key`, and the value's position among what it returns."""
    # The last helper of the chain that knows the key is the one that computes it: the others hand it through.
    for ref in reversed(helper_chain(source, helper)):
        keys = popped_keys(source, ref)
        if key in keys:
            return ref, keys.index(key)
    return helper, 0


def _result_annotation(node: ast.FunctionDef, index: int) -> str:
    """The annotation of one result of a function that returns a value or a tuple."""
    returns = node.returns
    if isinstance(returns, ast.Subscript) and ast.unparse(returns.value) in ("tuple", "Tuple"):
        elements = returns.slice.elts if isinstance(returns.slice, ast.Tuple) else [returns.slice]
        return ast.unparse(elements[index]) if index < len(elements) else ""
    return ast.unparse(returns) if returns is not None else ""
