"""One model's facts, put together from the answers to the single questions."""

from __future__ import annotations

import ast
import dataclasses

from ..errors import VgenError
from ..facts import ArgumentShape, ClassFact, Dim, Forward, ModelFacts, PackedSplit, PrologueCall, Ref, RoleFact, Span
from ..source import Source, SourceFile
from . import forward as declared
from .classes import Classes
from .composition import children, inherited_init
from .dims import argument_shapes, result_shapes
from .hazards import hazards, reachable
from .packed import find
from .prologue import prologue, prologue_only
from .roles import roles, unfollowed
from .trees import Tree, Trees


def analyze(source: Source, model: str) -> ModelFacts:
    """The facts of one model of `source`.

    Raises `VgenError`: "no-region" where none of its classes has a decoder or an encoder.
    """
    file = source.modeling_file(model)
    classes, trees = Classes(source), Trees(source)
    entries = _entries(classes, file)
    found: dict[RoleFact, None] = {}
    for entry in entries:
        found.update(dict.fromkeys(roles(classes, trees, entry)))
    if not found:
        raise VgenError(
            "no-region",
            f"{file.rel} offers no model with a decoder or an encoder: there is nothing to compile.",
            hint="`vgen list` shows what can be built.",
        )
    reach: dict[Ref, None] = {}
    for ref in (*entries, *(role.ref for role in found)):
        reach.update(dict.fromkeys(reachable(classes, trees, ref)))
    facts = tuple(_class_fact(classes, trees, ref) for ref in reach)
    return ModelFacts(
        model=model,
        file=file.rel,
        entries=entries,
        classes=facts,
        roles=tuple(found),
        hazards=tuple(hazard for fact in facts for hazard in hazards(classes, fact.ref, fact.forward)),
        notes=tuple(dict.fromkeys(note for entry in entries for note in unfollowed(classes, trees, entry))),
    )


def _entries(classes: Classes, file: SourceFile) -> tuple[Ref, ...]:
    """The model classes that the file offers in `__all__` and that run: abstract bases have no forward."""
    offered = _offered(file)
    refs = [Ref(file=file.rel, name=name) for name in file.definitions if name in offered]
    return tuple(
        ref
        for ref in refs
        if file.definitions[ref.name].is_class
        and classes.is_pretrained(ref)
        and classes.method(ref, "forward") is not None
    )


def _offered(file: SourceFile) -> set[str]:
    for node in file.tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Tuple):
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
                return {str(element.value) for element in node.value.elts if isinstance(element, ast.Constant)}
    return set(file.definitions)


def _class_fact(classes: Classes, trees: Trees, ref: Ref) -> ClassFact:
    init = classes.method(ref, "__init__")
    return ClassFact(
        ref=ref,
        bases=tuple(base.name for base in classes.bases(ref)),
        mro=classes.mro(ref),
        is_pretrained=classes.is_pretrained(ref),
        init=init[0] if init is not None else None,
        inherits_init=inherited_init(classes, ref),
        children=children(classes, trees, ref),
        forward=_forward(classes, trees, ref),
        span=classes.source.span(ref),
    )


def _forward(classes: Classes, trees: Trees, ref: Ref) -> Forward | None:
    found = classes.method(ref, "forward")
    if found is None:
        return None
    owner, node = found
    tree = trees.method(owner, "forward")
    file = classes.source.file(owner.file)
    parameters = declared.parameters(file, node)
    decorators = declared.decorators(file, node)
    calls = prologue(classes.source, tree, frozenset(parameter.name for parameter in parameters))
    shared = any(decorator.startswith("auto_docstring") for decorator in decorators)
    shapes = argument_shapes(classes.source, owner, node, parameters, shared)
    return Forward(
        owner=owner,
        parameters=parameters,
        returns=declared.returns(file, node),
        decorators=decorators,
        shapes=shapes + _result_shapes(classes.source, calls, shapes),
        prologue=calls,
        prologue_only=prologue_only(tree, calls),
        packed=_packed(tree),
        span=Span(file=owner.file, line=node.lineno),
    )


def _result_shapes(
    source: Source, calls: tuple[PrologueCall, ...], taken: tuple[ArgumentShape, ...]
) -> tuple[ArgumentShape, ...]:
    """The shapes of the prologue's results. A name ties dimensions within one docstring only, so a name that another
    docstring has used already is put under the argument's own."""
    owners: dict[str, Span | None] = {dim: None for shape in taken for dim in shape.dims or () if isinstance(dim, str)}
    found: list[ArgumentShape] = []
    for shape in (shape for call in calls for shape in result_shapes(source, call)):
        scope = shape.evidence[0].span if shape.evidence else None

        def own(dim: Dim, shape: ArgumentShape = shape, scope: Span | None = scope) -> Dim:
            if not isinstance(dim, str):
                return dim
            return dim if owners.setdefault(dim, scope) == scope else f"{shape.name}_{dim}"

        dims = tuple(own(dim) for dim in shape.dims) if shape.dims is not None else None
        found.append(dataclasses.replace(shape, dims=dims))
    return tuple(found)


def _packed(tree: Tree) -> PackedSplit | None:
    packed = find(tree)
    if packed is None:
        return None
    first, last = packed.statements[0], packed.statements[-1]
    return PackedSplit(
        owner=tree.ref,
        method=tree.method.name.value,
        cu_seqlens=packed.cu_seqlens,
        first_line=tree.first_line(first),
        last_line=tree.last_line(last),
        span=tree.span(first),
    )
