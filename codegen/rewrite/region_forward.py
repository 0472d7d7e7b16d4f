"""The forward and the core of a region: the prologue outside of the graph, upstream's forward inside it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import lru_cache

import libcst as cst

from ..analyze.callgraph import RENAMING
from ..analyze.embeddings import find
from ..analyze.trees import Trees
from ..facts import Forward, Parameter, ParameterKind, PrologueCall
from ..plan import Region
from ..source import Import, Source, SourceFile
from .names import Move, Names

_BEFORE_KEYWORD_ONLY = (ParameterKind.VAR_POSITIONAL, ParameterKind.KEYWORD_ONLY)
WITHIN = "within_recorder"
"""The runtime's function that calls a forward which records, where others record around it."""
_ANY = Import(module="typing", name="Any", bound_as="Any")
_TORCH = Import(module="torch", name=None, bound_as="torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardText:
    """What the templates of `forward` and `prologue` lay out: source text, already in the generated module's names."""

    decorators: tuple[str, ...]
    signature: str
    returns: str
    otherwise: str
    otherwise_comment: tuple[str, ...]
    by_layer: str
    by_layer_comment: list[str]
    passed: str
    entering: str
    rest: str
    hoisted: tuple[str, ...]
    hoisted_comment: list[str]
    hoisting: str
    embedding: str
    embedding_comment: list[str]
    prologue_signature: str
    results: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreText:
    signature: str
    returns: str
    passed: str


def region_forward(
    source: Source,
    trees: Trees,
    names: Names,
    forward: Forward,
    region: Region,
    *,
    is_rewritten: bool = False,
    within_recorder: tuple[str, ...] = (),
) -> ForwardText:
    """The generated forward. Its signature is upstream's, with the keyword arguments that upstream's decorators take.

    `is_rewritten`: The core isn't upstream's forward alone, and goes into the graphs of others too.
    `within_recorder`: The comment where it records inside of what others record.
    """
    signature, returns = _declaration(source, trees, names, forward)
    rest = _keywords_name(forward)
    targets = list(dict.fromkeys(target for call in region.hoisted for target in call.targets))
    read = {name for call in region.hoisted for name in call.reads}
    parameters = [p for p in forward.parameters if not p.is_variadic and p.name in read]
    entering = [f"{name}={name}" for name in _core_names(forward, region) if name not in targets]
    if targets:
        names.imports.add(_ANY)
    otherwise, passed = "self.core" if is_rewritten else "super().forward", passed_on(forward.parameters, rest)
    return ForwardText(
        decorators=_renaming(source, names, forward),
        signature=signature,
        returns=returns,
        otherwise=WITHIN if within_recorder else otherwise,
        otherwise_comment=within_recorder,
        by_layer=_by_layer(region),
        by_layer_comment=_by_layer_comment(region),
        passed=f"{otherwise}, {passed}" if within_recorder else passed,
        entering=", ".join([*entering, *(["**hoisted"] if targets else []), *_spread(rest)]),
        rest=rest or "",
        hoisted=tuple(_hoisted(source, trees, names, forward, call) for call in region.hoisted),
        hoisted_comment=_hoisted_comment(region),
        hoisting=", ".join(f"{p.name}={p.name}" for p in parameters),
        embedding=_embedding(source, trees, names, forward) if region.embedding is not None else "",
        embedding_comment=_embedding_comment(region),
        prologue_signature=", ".join(
            ["self", *(_parameter(names, source, forward, p) for p in parameters), f"{rest}: dict[str, Any]"]
        ),
        results=", ".join(f'"{target}": {target}' for target in targets),
    )


def region_core(source: Source, trees: Trees, names: Names, forward: Forward, region: Region) -> CoreText:
    """The generated core: explicit tensors in, upstream's forward called with the prologue's results."""
    declared = {parameter.name: parameter for parameter in forward.parameters}
    rest = _keywords_name(forward)
    annotations = {shape.name: "int | None" if shape.is_python_int else "torch.Tensor" for shape in region.contract}
    entries = []
    for name in _core_names(forward, region):
        if name in declared:
            entries.append(_parameter(names, source, forward, declared[name]))
        else:
            entries.append(f"{name}: {annotations.get(name, 'torch.Tensor')}")
            names.imports.add(_TORCH)
    variadic = next((p for p in forward.parameters if p.kind is ParameterKind.VAR_KEYWORD), None)
    entries += [f"**{_parameter(names, source, forward, variadic)}"] if variadic else _spread(rest)
    returns = _returns(names, source.file(forward.owner.file), forward)
    passed = []
    for parameter in forward.parameters:
        if parameter.kind is ParameterKind.VAR_KEYWORD:
            continue
        value = "None" if parameter.name in region.dropped else parameter.name
        passed.append(value if parameter.kind is ParameterKind.POSITIONAL_ONLY else f"{parameter.name}={value}")
    passed += [
        f"{key}={target}" for call in region.hoisted for key, target in zip(call.keys, call.targets, strict=True)
    ]
    return CoreText(
        signature=", ".join(["self", *entries]) + ",", returns=returns, passed=", ".join([*passed, *_spread(rest)])
    )


def passed_on(parameters: tuple[Parameter, ...], rest: str | None = None) -> str:
    """The arguments that hand every parameter on to the same method of the base class.

    By keyword: upstream's decorators add what they find missing among the keyword arguments, `use_cache` for one, and
    don't see what was given by position. In front of `*args` only a position will do.
    """
    by_position = any(parameter.kind is ParameterKind.VAR_POSITIONAL for parameter in parameters)
    passed = []
    for parameter in parameters:
        match parameter.kind:
            case ParameterKind.POSITIONAL_ONLY:
                passed.append(parameter.name)
            case ParameterKind.POSITIONAL if by_position:
                passed.append(parameter.name)
            case ParameterKind.VAR_POSITIONAL:
                passed.append(f"*{parameter.name}")
            case ParameterKind.POSITIONAL | ParameterKind.KEYWORD_ONLY:
                passed.append(f"{parameter.name}={parameter.name}")
            case ParameterKind.VAR_KEYWORD:
                rest = parameter.name
    return ", ".join([*passed, f"**{rest}"] if rest else passed)


def _core_names(forward: Forward, region: Region) -> list[str]:
    """What enters the core: the parameters it still reads, then the prologue's results, each once."""
    own = [p.name for p in forward.parameters if not p.is_variadic and p.name not in region.dropped]
    return list(dict.fromkeys([*own, *(target for call in region.hoisted for target in call.targets)]))


def _keywords_name(forward: Forward) -> str | None:
    """The name of the parameter that takes further keyword arguments; None where upstream takes none."""
    named = next((p.name for p in forward.parameters if p.kind is ParameterKind.VAR_KEYWORD), None)
    # Upstream's decorators take `return_dict` and the like from keyword arguments that the signature doesn't show.
    takes_more = forward.prologue or not all(map(_renames, forward.decorators))
    return "kwargs" if named is None and takes_more else named


def _spread(rest: str | None) -> list[str]:
    return [f"**{rest}"] if rest is not None else []


def _declaration(source: Source, trees: Trees, names: Names, forward: Forward) -> tuple[str, str]:
    """The parameters, `self` included, and the return annotation, in the generated module's names."""
    origin = source.file(forward.owner.file)
    entries = ["self"]
    previous = ParameterKind.POSITIONAL
    for parameter in forward.parameters:
        if previous is ParameterKind.POSITIONAL_ONLY and parameter.kind is not previous:
            entries.append("/")
        if parameter.kind is ParameterKind.KEYWORD_ONLY and previous not in _BEFORE_KEYWORD_ONLY:
            entries.append("*")
        star = {ParameterKind.VAR_POSITIONAL: "*", ParameterKind.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = f" = {_moved(names, origin, parameter.default)}" if parameter.default is not None else ""
        entries.append(f"{star}{_parameter(names, source, forward, parameter)}{default}")
        previous = parameter.kind
    if not any(parameter.kind is ParameterKind.VAR_KEYWORD for parameter in forward.parameters):
        entries += _spread(_keywords_name(forward))
    # Upstream's trailing comma keeps one parameter to a line.
    comma = "," if trees.method(forward.owner, "forward").has_trailing_comma else ""
    return ", ".join(entries) + comma, _returns(names, origin, forward)


def _renaming(source: Source, names: Names, forward: Forward) -> tuple[str, ...]:
    """The decorators by which callers may still use an argument's former name."""
    kept = filter(_renames, forward.decorators)
    return tuple(_moved(names, source.file(forward.owner.file), each) for each in kept)


def _renames(decorator: str) -> bool:
    return decorator.partition("(")[0].rpartition(".")[2] in RENAMING


def _returns(names: Names, origin: SourceFile, forward: Forward) -> str:
    return f" -> {_moved(names, origin, forward.returns)}" if forward.returns is not None else ""


def _moved(names: Names, origin: SourceFile, expression: str) -> str:
    """An expression of a signature in the generated module's names."""
    function, default = _default_of(expression)
    moved = default.visit(Move(names, origin, function))
    assert isinstance(moved, cst.BaseExpression)
    if "\n" not in expression:
        moved = moved.with_changes(lpar=moved.lpar[1:], rpar=moved.rpar[:-1])
    return cst.Module(body=()).code_for_node(moved)


@lru_cache(maxsize=256)
def _default_of(expression: str) -> tuple[cst.FunctionDef, cst.BaseExpression]:
    """A function with the expression as a default, and that default. Signatures use few expressions, over and over."""
    function = cst.parse_statement(f"def f(self, _=({expression})): ...")
    assert isinstance(function, cst.FunctionDef)
    default = function.params.params[1].default
    assert default is not None
    return function, default


def _parameter(names: Names, source: Source, forward: Forward, parameter: Parameter) -> str:
    """A parameter without its default: the forward hands every argument over."""
    if parameter.annotation is None:
        return parameter.name
    return f"{parameter.name}: {_moved(names, source.file(forward.owner.file), parameter.annotation)}"


def _hoisted(source: Source, trees: Trees, names: Names, forward: Forward, call: PrologueCall) -> str:
    """One prologue statement in the generated module's names; the forward's own names stay."""
    statement = cst.parse_statement(call.text)
    assert isinstance(statement, cst.SimpleStatementLine)
    mover = Move(names, source.file(call.span.file), trees.method(forward.owner, "forward").method)
    if call.within:
        mover.local = frozenset(name for each in forward.prologue for name in ("kwargs", *each.targets, *each.reads))
    moved = statement.visit(mover)
    assert isinstance(moved, cst.SimpleStatementLine)
    return cst.Module(body=(moved,)).code.strip()


def _embedding(source: Source, trees: Trees, names: Names, forward: Forward) -> str:
    """The statements that make the embeddings, and the checks of what they are made of, in the generated module's names."""
    tree = trees.method(forward.owner, "forward")
    found = find(tree)
    assert found is not None
    mover = Move(names, source.file(forward.owner.file), tree.method)
    moved = [each.visit(mover) for each in (*found.checks, found.block)]
    statements = [cst.ensure_type(each, cst.If).with_changes(leading_lines=()) for each in moved]
    return cst.Module(body=statements).code.strip()


def _embedding_comment(region: Region) -> list[str]:
    if region.embedding is None:
        return []
    place = region.embedding.place
    where = f"{place.span.file.rpartition('/')[2]}:{place.first_line}-{place.last_line}"
    return textwrap.wrap(f"vgen embeddings: made by reading values, so outside of the graph ({where}).", 110)


def _by_layer(region: Region) -> str:
    """When it runs by its layers, as the left side of an `or`."""
    condition = region.by_layer.condition if region.by_layer is not None else ""
    return f"({condition})" if " and " in condition else condition


def _by_layer_comment(region: Region) -> list[str]:
    if region.by_layer is None:
        return []
    lines: dict[str, list[str]] = {}
    for span in sorted({span for _, span in region.by_layer.places}):
        lines.setdefault(span.file.rpartition("/")[2], []).append(f"{span.line}")
    where = "; ".join(f"{file}:{', '.join(found)}" for file, found in lines.items())
    return textwrap.wrap(
        f"vgen by-layer: layers are left out at random ({where}), so each is a graph of its own.", 110
    )


def _hoisted_comment(region: Region) -> list[str]:
    if not region.hoisted:
        return []
    own = [call for call in region.hoisted if not call.within]
    places = [(own[0].span.file, own[0].first_line, own[-1].last_line)] if own else []
    places += [(call.span.file, call.first_line, call.last_line) for call in region.hoisted if call.within]
    lines: dict[str, list[str]] = {}
    for file, first, last in places:
        lines.setdefault(file.rpartition("/")[2], []).append(f"{first}-{last}" if last > first else f"{first}")
    where = "; ".join(f"{file}:{', '.join(found)}" for file, found in lines.items())
    return textwrap.wrap(f"vgen prologue: computed from values, so outside of the graph ({where}).", 110)
