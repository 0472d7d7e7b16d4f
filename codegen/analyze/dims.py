"""The shape of every tensor that enters a forward, with the evidence for it.

Names come from the forward's own docstring, else from the arguments that `auto_docstring` shares between models, else from how
the body unpacks the shape. Where the body contradicts a docstring, nothing is believed: every dimension may change. A helper's
docstring speaks for what the helper returns. Names tie dimensions only within one docstring: two docstrings that say
`total_tokens` need not mean the same number.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from ..facts import ArgumentShape, Dim, Evidence, EvidenceSource, Parameter, PrologueCall, Ref, Span
from ..source import Source
from . import evidence as evidence_in
from .annotations import Annotated, annotated
from .kinds import CACHES
from .prologue import helper_chain, popped_keys

STATIC = re.compile(
    r"(.*_)?(hidden|embed\w*|emb|head|model|feature|channel|inner|intermediate|text|vision|projection)_?(size|dim|dims)$"
    r"|d_model|dim|channels?|num_channels|num_(attention_)?heads|vocab_size|config\..*|(num_)?mel_bins|num_codebooks"
)
"""Names of dimensions that a configuration fixes: they don't change from call to call."""

RETURNED = re.compile(r"`(\w+)`:\s*`\(([^`]*?)\)`([^\n]*)")
ALTERNATIVE = re.compile(r"`\(([^`]*?)\)`")
KV_LENGTH = "kv_length"
"""The length of what a decoder attends to: what its cache holds, and what a call adds."""


def argument_shapes(
    source: Source, ref: Ref, method: ast.FunctionDef, parameters: tuple[Parameter, ...], shared: bool
) -> tuple[ArgumentShape, ...]:
    """The shapes of a forward's parameters; `shared` says whether `auto_docstring` documents it."""
    declared = {each.arg: each for each in ast.walk(method.args) if isinstance(each, ast.arg)}
    cache = next((each for each in declared.values() if each.arg in CACHES), None)
    found = []
    for parameter in parameters:
        name, kind = parameter.name, annotated(parameter.annotation)
        if parameter.is_variadic or kind is Annotated.OTHER:
            continue
        evidence: list[Evidence] = []

        def note(source: EvidenceSource, text: str, line: int, file: str = ref.file) -> None:
            evidence.append(Evidence(source=source, text=text, span=Span(file=file, line=line)))  # noqa: B023 (called in this turn of the loop)

        is_tuple = kind is Annotated.TENSORS
        if (own := evidence_in.documented(method).get(name)) is not None:
            note(EvidenceSource.OWN_DOCSTRING, *own)
        elif shared and (entry := evidence_in.shared(source, name, is_tuple=is_tuple)) is not None:
            note(EvidenceSource.SHARED_DOCSTRING, *entry, evidence_in.SHARED)
        dims = _dims(evidence[0].text, name) if evidence else None
        if dims is not None and evidence[0].source is EvidenceSource.SHARED_DOCSTRING:
            # For every model with audio features it says that they come after the frames: in some they come before.
            parts = _split(evidence[0].text)
            dims = tuple(part if part == "feature_dim" else dim for part, dim in zip(parts, dims, strict=True))
        disagreement = None
        if not is_tuple:
            dims, disagreement = _as_used(method, name, dims, note)
        if dims is not None and name.startswith("encoder_"):
            # What an encoder computed has a length of its own, whatever the shared docstring calls it.
            renamed = tuple(_encoders(dim) for dim in dims)
            if renamed != dims:
                note(
                    EvidenceSource.READING,
                    f"{_text(renamed)}: an encoder's output has a length of its own",
                    declared[name].lineno,
                )
            dims = renamed
        elif dims is not None and cache is not None and name.endswith("attention_mask"):
            dims = (*dims[:-1], KV_LENGTH)
            text = f"{_text(dims)}: a mask covers what `{cache.arg}` holds as well as what this call adds"
            note(EvidenceSource.READING, text, cache.lineno)
        if kind is not Annotated.NOTHING:
            note(EvidenceSource.ANNOTATION, parameter.annotation or "", declared[name].lineno)
        found.append(
            ArgumentShape(
                name=name,
                # What isn't annotated is a tensor where something gives it a shape.
                is_tensor=kind is Annotated.TENSOR or (kind is Annotated.NOTHING and bool(evidence)),
                is_tuple=is_tuple,
                dims=dims,
                evidence=tuple(evidence),
                disagreement=disagreement,
            )
        )
    return tuple(found)


def _as_used(
    method: ast.FunctionDef,
    name: str,
    dims: tuple[Dim, ...] | None,
    note: Callable[[EvidenceSource, str, int], None],
) -> tuple[tuple[Dim, ...] | None, str | None]:
    """What documentation says, held against the body; and why they don't agree, where they don't. The body's use is noted."""
    test, unpacked = evidence_in.rank_test(method, name), evidence_in.unpacked(method, name)
    if test is not None:
        note(EvidenceSource.BODY, *test)
        asked = f"the body asks for its number of dimensions (`{test[0]}`): every dimension may change"
        return None, asked if dims is not None or unpacked is not None else None
    if unpacked is None:
        use = evidence_in.used_as_tensor(method, name) if dims is None else None
        if use is not None:
            note(EvidenceSource.BODY, *use)
        return dims, None
    note(EvidenceSource.BODY, *unpacked)
    if dims is None:
        return _dims(unpacked[0], name), None
    count = len(_split(unpacked[0]))
    if count != len(dims):
        return (
            None,
            f"the docstring gives {len(dims)} dimensions, the body unpacks {count}: every dimension may change",
        )
    return dims, None


def _encoders(dim: Dim) -> Dim:
    plain = not isinstance(dim, str) or "batch" in dim or dim.startswith("encoder_")
    return dim if plain else f"encoder_{dim}"


def _text(dims: tuple[Dim, ...]) -> str:
    return f"({', '.join('fixed' if dim is None else str(dim) for dim in dims)})"


def result_shapes(source: Source, call: PrologueCall) -> tuple[tuple[Ref, ArgumentShape], ...]:
    """The shapes of what a prologue call computes, from the docstrings of the helpers behind it, and which helper's each is."""
    found = []
    for target, key in zip(call.targets, call.keys, strict=True):
        helper, index = _origin(source, call.helper, key)
        definition = source.definition(helper)
        assert isinstance(definition.node, ast.FunctionDef)
        annotation = _result_annotation(definition.node, index)
        docstring = ast.get_docstring(definition.node, clean=False) or ""
        dims, evidence = None, []
        match = _returned(docstring, key, index, len(popped_keys(source, helper)))
        if match is not None:
            line = evidence_in.docstring_line(definition.node, docstring, match.start())
            dims = _dims(match.group(2), target)
            for other in ALTERNATIVE.finditer(match.group(3)):
                dims = _common(dims, _dims(other.group(1), target))
            evidence.append(
                Evidence(
                    source=EvidenceSource.HELPER_DOCSTRING,
                    text=f"({match.group(2)}){match.group(3)}".strip(),
                    span=Span(file=helper.file, line=line),
                )
            )
        if annotation:
            evidence.append(
                Evidence(source=EvidenceSource.RESULT_ANNOTATION, text=annotation, span=source.span(helper))
            )
        is_int = "Tensor" not in annotation and re.search(r"\bint\b", annotation) is not None
        shape = ArgumentShape(
            name=target,
            is_tensor=not is_int,
            is_python_int=is_int,
            dims=None if is_int else dims,
            evidence=tuple(evidence),
        )
        found.append((helper, shape))
    return tuple(found)


def _returned(docstring: str, key: str, index: int, count: int) -> re.Match[str] | None:
    """What a helper's docstring says of one of its results: under its key, else in its place where the docstring lists them all."""
    found = list(RETURNED.finditer(docstring, max(docstring.find("Returns:"), 0)))
    named = next((match for match in found if match.group(1) == key), None)
    return named or (found[index] if len(found) == count else None)


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
