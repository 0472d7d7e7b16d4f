"""What is seen of one forward, put together from the answers to the single questions."""

from __future__ import annotations

import ast
import dataclasses

import libcst as cst

from ..facts import (
    ArgumentShape,
    Dim,
    EmbeddingBlock,
    Forward,
    LayerChoice,
    PackedSplit,
    Pattern,
    PrologueCall,
    Ref,
    SizeReads,
    Span,
)
from ..source import Source
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
    size_ranges,
    truths,
)
from . import forward as declared
from .callgraph import RENAMING, call_graph, decorators
from .classes import Classes, has_models
from .dims import argument_shapes, result_shapes
from .grouped import lookup
from .hazards import hoisted_lines
from .inner_prologue import hoistable
from .packed import find
from .trees import Tree, Trees


def forward_of(classes: Classes, trees: Trees, ref: Ref) -> Forward | None:
    """The forward that a class has, its own or inherited; None where it has none."""
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
        ranges=tuple(_pattern(tree, each[0], each[-1]) for tree, each in size_ranges.methods(classes, trees, ref)),
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
        target=found.target,
        made_of=found.made_of,
        parts=found.parts,
        recorded=embeddings.recorded(classes, ref),
        place=_pattern(tree, found.block, found.block),
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
