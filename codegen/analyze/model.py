"""One model's facts, put together from the answers to the single questions."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable

import libcst as cst

from ..decisions import NONE, Decisions
from ..errors import VgenError
from ..facts import (
    ArgumentShape,
    ChildKind,
    ClassFact,
    Dim,
    EmbeddingBlock,
    Forward,
    LayerChoice,
    ModelFacts,
    PackedSplit,
    Pattern,
    PrologueCall,
    Ref,
    RoleFact,
    SizeReads,
    Span,
)
from ..source import Source, SourceFile
from . import (
    clamps,
    divisions,
    embeddings,
    experts,
    graph_only,
    layer_drop,
    loops,
    messages,
    positions,
    size_buffers,
    size_loops,
    truths,
)
from . import forward as declared
from .callgraph import RENAMING, call_graph, decorators
from .classes import Classes, has_models
from .composition import children, inherited_init, live
from .dims import argument_shapes, result_shapes
from .grouped import lookup
from .hazards import hazards, hoisted_lines, reachable
from .inner_prologue import hoistable
from .packed import find
from .roles import rivals, roles, unfollowed
from .trees import Tree, Trees


def analyze(source: Source, model: str, decisions: Decisions = NONE) -> ModelFacts:
    """The facts of one model of `source`. `decisions` have the last word on the roles.

    Raises `VgenError`: "no-region" where none of its classes has a decoder or an encoder.
    """
    file = source.modeling_file(model)
    classes, trees = Classes(source), Trees(source)
    entries = tuple(entry for each in source.entry_files(model) for entry in _entries(classes, trees, each))
    if not entries and source.local is not None:
        raise VgenError(
            "no-model",
            f"{file.rel} defines no subclass of Transformers' PreTrainedModel with a forward: there is no model in it.",
            span=Span(file=file.rel, line=1),
            hint="Name the file that defines the model.",
        )
    found: dict[RoleFact, None] = {}
    for entry in entries:
        found.update(dict.fromkeys(roles(classes, trees, entry, decisions)))
    _check(model, file, found, decisions)
    found = {role: None for role in found if role.ref.name not in decisions.leave_out}
    if not found and not any(child.kind.by_config for entry in entries for child in children(classes, trees, entry)):
        raise VgenError(
            "no-region",
            f"{file.rel} offers no model with a decoder or an encoder: there is nothing to compile.",
            hint="`vgen list` shows what can be built.",
        )
    playing = {role.ref for role in found}
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
        notes=tuple(
            dict.fromkeys(
                (
                    *(note for entry in entries for note in unfollowed(classes, trees, entry, model)),
                    *(note for entry in entries for note in rivals(classes, trees, entry, model, playing)),
                    *(note for fact in facts for note in stays_upstreams(classes, fact)),
                )
            )
        ),
    )


def _check(model: str, file: SourceFile, found: Iterable[RoleFact], decisions: Decisions) -> None:
    """Raises `VgenError` "settings" where a decision leads to no class."""
    where = f"[tool.vgen.models.{model}]"
    reached = {part for role in found for part in (".".join(role.path), role.ref.name)}
    for key, part in (("decoder", decisions.decoder), *(("encoders", part) for _, part in decisions.encoders)):
        if part is not None and part not in reached:
            raise VgenError(
                "settings",
                f'{key} in {where} of your pyproject.toml is "{part}", but no model of {file.rel} has that part.',
                hint=f"`vgen explain {model}` shows the ways down that there are.",
            )
    for name in decisions.leave_out:
        if name not in {role.ref.name for role in found}:
            raise VgenError(
                "settings",
                f"leave-out in {where} of your pyproject.toml names {name}, but that is no class that would be compiled.",
                hint=f"`vgen explain {model}` shows those that would be.",
            )


def _entries(classes: Classes, trees: Trees, file: SourceFile) -> tuple[Ref, ...]:
    """The model classes that the file offers in `__all__` and that run.

    Abstract bases have no forward; a model that only generates has none either, but it has parts that are models.
    """
    offered = _offered(file)
    refs = [Ref(file=file.rel, name=name) for name in file.definitions if name in offered]
    return tuple(
        ref
        for ref in refs
        if file.definitions[ref.name].is_class
        and classes.is_pretrained(ref)
        and (classes.method(ref, "forward") is not None or _has_models(classes, trees, ref))
    )


def _has_models(classes: Classes, trees: Trees, ref: Ref) -> bool:
    made = children(classes, trees, ref)
    return any(child.target is not None and child.attribute and classes.is_pretrained(child.target) for child in made)


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


def stays_upstreams(classes: Classes, fact: ClassFact) -> tuple[tuple[Span, str], ...]:
    """The parts of a class that a build leaves as they are, with their places."""
    found = []
    if fact.init is not None:
        for name, line in live(classes, fact.ref):
            text = f"{fact.ref.name}.{name} may be a model that the caller made: such a one stays as it is"
            found.append((Span(file=fact.init.file, line=line), text))
    for child in fact.children:
        if child.kind is ChildKind.FACTORY and child.target is not None:
            text = f"{child.callee}() makes {child.target.name}, which stays upstream's"
            found.append((child.span, text))
        elif child.kind is ChildKind.BACKBONE:
            text = f"{child.callee}({child.config}) makes the backbone's generated class where it is built, else upstream's"
            found.append((child.span, text))
    return tuple(found)


def _forward(classes: Classes, trees: Trees, ref: Ref) -> Forward | None:
    found = classes.method(ref, "forward")
    if found is None:
        return None
    owner, node = found
    tree = trees.method(owner, "forward")
    file = classes.source.file(owner.file)
    parameters = declared.parameters(file, node)
    decorators = declared.decorators(file, node)
    hoisted = hoistable(classes, trees, ref)
    calls = hoisted.calls
    shared = any(decorator.startswith("auto_docstring") for decorator in decorators)
    shapes = argument_shapes(classes.source, owner, node, parameters, shared)
    return Forward(
        owner=owner,
        parameters=parameters,
        returns=declared.returns(file, node),
        decorators=decorators,
        shapes=shapes + _result_shapes(classes.source, calls, shapes),
        prologue=calls,
        prologue_only=hoisted.only,
        packed=_packed(tree),
        grouped=lookup(classes, ref, owner, node),
        clamps=_clamps(tree),
        span=Span(file=owner.file, line=node.lineno),
        loop=_loop(classes, trees, ref),
        divisions=_divisions(classes, trees, ref),
        choice=_choice(tree),
        graph_only=_graph_only(classes, ref, calls),
        experts=_experts(classes, trees, ref),
        sizes=_sizes(classes, trees, ref),
        truths=truths.truths(classes, trees, ref),
        asked=_asked(tree),
        size_loops=_size_loops(classes, ref),
        looping=_looping(classes, ref),
        embedding=_embedding(classes, ref, tree),
        messages=tuple(_pattern(tree, each[0], each[-1]) for tree, each in messages.methods(classes, trees, ref)),
        masks=positions.of_class(classes, ref),
    )


def _result_shapes(
    source: Source, calls: tuple[PrologueCall, ...], taken: tuple[ArgumentShape, ...]
) -> tuple[ArgumentShape, ...]:
    """The shapes of the prologue's results. A name ties dimensions within one docstring only, so a name that another
    docstring has used already is put under the argument's own."""
    owners: dict[str, Ref | None] = {dim: None for shape in taken for dim in shape.dims or () if isinstance(dim, str)}
    found: list[ArgumentShape] = []
    for helper, shape in (each for call in calls for each in result_shapes(source, call)):

        def own(dim: Dim, shape: ArgumentShape = shape, helper: Ref = helper) -> Dim:
            if not isinstance(dim, str):
                return dim
            return dim if owners.setdefault(dim, helper) == helper else f"{shape.name}_{dim}"

        dims = tuple(own(dim) for dim in shape.dims) if shape.dims is not None else None
        found.append(dataclasses.replace(shape, dims=dims))
    return tuple(found)


def _clamps(tree: Tree) -> Pattern | None:
    # What most decorators add would be lost with the method's body moved.
    found = clamps.find(tree) if not set(decorators(tree.node)) - RENAMING else ()
    if not found:
        return None
    return _pattern(tree, found[0].branch, found[-1].branch)


def _asked(tree: Tree) -> Pattern | None:
    # What most decorators add would be lost with the method's body moved.
    found = list(truths.find(tree).values()) if not set(decorators(tree.node)) - RENAMING else []
    return _pattern(tree, found[0], found[-1]) if found else None


def _loop(classes: Classes, trees: Trees, ref: Ref) -> Pattern | None:
    """The first method of a class of Transformers that loops over values."""
    for owner in classes.mro(ref):
        node, file = classes.node(owner), classes.source.file(owner.file) if has_models(owner.file) else None
        if node is None or file is None or file.is_copy or ".tolist()" not in file.text:
            continue
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name not in ("__init__", "forward"):
                tree = trees.method(owner, method.name)
                found = loops.find(tree)
                if found is not None:
                    return _pattern(tree, found.statement, found.statement)
    return None


def _divisions(classes: Classes, trees: Trees, ref: Ref) -> tuple[Pattern, ...]:
    """The methods that divide sizes, of those in the class's own body."""
    node = classes.node(ref)
    if node is None or "torch.div(" not in classes.source.file(ref.file).text:
        return ()
    found = []
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name not in ("__init__", "forward"):
            tree = trees.method(ref, method.name)
            calls = divisions.find(tree)
            if calls:
                found.append(_pattern(tree, calls[0], calls[-1]))
    return tuple(found)


def _experts(classes: Classes, trees: Trees, ref: Ref) -> Pattern | None:
    found = experts.find(classes, trees, ref)
    if found is None:
        return None
    return Pattern(
        owner=ref,
        method="forward",
        first_line=found.first_line,
        last_line=found.last_line,
        span=Span(file=ref.file, line=found.first_line),
    )


def _sizes(classes: Classes, trees: Trees, ref: Ref) -> SizeReads | None:
    found = size_buffers.of_class(classes.source, trees, ref)
    if found is None:
        return None
    methods = tuple(_pattern(each.tree, each.places[0], each.places[-1]) for each in found.methods)
    return SizeReads(names=found.names, methods=methods)


def _size_loops(classes: Classes, ref: Ref) -> tuple[Pattern, ...]:
    return tuple(
        Pattern(
            owner=ref,
            method=each.method,
            first_line=each.first_line,
            last_line=each.last_line,
            span=Span(file=ref.file, line=each.first_line),
        )
        for each in size_loops.find(classes, ref)
    )


def _looping(classes: Classes, ref: Ref) -> tuple[Pattern, ...]:
    found = (looping for each in size_loops.find(classes, ref) for _, looping in each.found)
    return tuple(
        dict.fromkeys(
            Pattern(
                owner=looping.ref,
                method=name,
                first_line=first,
                last_line=last,
                span=Span(file=file, line=first),
            )
            for looping in found
            for name, file, first, last in looping.lines
        )
    )


def _choice(tree: Tree) -> LayerChoice | None:
    found = layer_drop.find(tree)
    if found is None:
        return None
    return LayerChoice(
        lists=found.lists,
        conditions=found.conditions,
        spans=tuple(tree.span(branch) for branch in found.branches),
    )


def _graph_only(classes: Classes, ref: Ref, calls: tuple[PrologueCall, ...]) -> tuple[Pattern, ...]:
    """The branches in reach of a forward, but for what is hoisted from it."""
    hoisted = hoisted_lines(calls)
    return tuple(
        Pattern(
            owner=reached.owner,
            method=reached.function.name,
            first_line=lines.start,
            last_line=lines.stop - 1,
            span=Span(file=reached.owner.file, line=lines.start),
        )
        for reached in call_graph(classes).reach(ref, hoisted)
        if reached.line is None and graph_only.asks(classes.source.file(reached.owner.file).text)
        for lines in graph_only.find(reached.function)
    )


def _embedding(classes: Classes, ref: Ref, tree: Tree) -> EmbeddingBlock | None:
    found = embeddings.find(tree)
    if found is None:
        return None
    return EmbeddingBlock(
        owner=tree.ref,
        target=found.target,
        made_of=found.made_of,
        parts=found.parts,
        recorded=embeddings.recorded(classes, ref),
        first_line=tree.first_line(found.block),
        last_line=tree.last_line(found.block),
        span=tree.span(found.block),
    )


def _pattern(tree: Tree, first: cst.CSTNode, last: cst.CSTNode) -> Pattern:
    return Pattern(
        owner=tree.ref,
        method=tree.method.name.value,
        first_line=tree.first_line(first),
        last_line=tree.last_line(last),
        span=tree.span(first),
    )


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
