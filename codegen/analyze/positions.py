"""Which positions a class's forward makes attention masks of:

    if position_ids is None:
        position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_seen_tokens
        position_ids = position_ids.unsqueeze(0)
    causal_mask = create_causal_mask(…, position_ids=position_ids)

Where it is given neither a mask nor a cache, upstream looks in eager whether positions rise one by one, and can't in a graph. Of a
range the answer is known; of a forward's own argument the region asks, before its graph runs (`runtime/positions.py`). That is good
for a region only if all masks inside of it are made of such positions. Where one isn't seen to be, nothing is said.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..facts import MaskPositions, Ref
from ..memo import remembered
from ..source import SourceFile
from .callgraph import call_graph
from .classes import Classes, has_models
from .position_flow import Flow
from .position_kinds import Kind

MODULE = "transformers.masking_utils"
MAKERS = frozenset(
    {
        "create_causal_mask",
        "create_sliding_window_causal_mask",
        "create_chunked_causal_mask",
        "create_masks_for_generate",
    }
)
"""Their fifth argument is `position_ids`."""
HARMLESS = frozenset(
    {
        "ALL_MASK_ATTENTION_FUNCTIONS",
        "and_masks",
        "bidirectional_mask_function",
        "blockwise_overlay",
        "causal_mask_function",
        "create_bidirectional_mask",
        "create_bidirectional_sliding_window_mask",
        "create_recurrent_attention_mask",
        "or_masks",
        "packed_sequence_mask_function",
        "sliding_window_bidirectional_overlay",
        "sliding_window_overlay",
    }
)
"""What looks at no positions: whatever else of that module a function names might."""


@remembered
def of_class(classes: Classes, ref: Ref) -> MaskPositions | None:
    """What the masks are made of that a class's own methods and the functions they call make, those of its children left out.
    None where it isn't known."""
    forward = classes.method(ref, "forward")
    makers: dict[str, None] = {}
    for file, function in _below(classes, ref):
        named = set(_named(classes.source.file(file), function))
        if _names_elsewhere(classes.source.file(file)):
            return None
        if not named:
            continue
        if forward is None or function is not forward[1] or not named <= MAKERS:
            return None
        makers.update(dict.fromkeys(_bound(classes.source.file(file), function)))
    if forward is None or not makers:
        return MaskPositions()
    kinds = Flow(forward[1], frozenset(makers)).kinds()
    if not kinds <= _KNOWN or {Kind.OWN, Kind.FIRST} <= kinds:
        return None
    own, first = bool({Kind.OWN, Kind.OWN_ROWS} & kinds), Kind.FIRST in kinds
    return MaskPositions(are_made=bool(kinds - {Kind.NONE}), own=own, first_of_four=first)


_KNOWN = frozenset({Kind.NONE, Kind.RANGE, Kind.OWN, Kind.OWN_ROWS, Kind.FIRST})


def _below(classes: Classes, ref: Ref) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The methods of a class that its `__init__` and its forward may run, and the functions of models' files, with their files.
    An attribute that is called like a method is taken for it."""
    found = [classes.method(ref, name) for name in ("__init__", "forward")]
    pending = [(owner.file, method) for owner, method in (each for each in found if each is not None)]
    seen: set[int] = set()
    while pending:
        file, function = pending.pop(0)
        if id(function) in seen:
            continue
        seen.add(id(function))
        yield file, function
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                is_super = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
                owners = classes.mro(ref) if is_super else ()
                pending += [each for owner in owners if (each := _in_body(classes, owner, node.attr)) is not None]
                method = classes.method(ref, node.attr) if node.attr not in ("forward", "__init__") else None
                if method is not None:
                    pending.append((method[0].file, method[1]))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                target = call_graph(classes).function(file, node.id)
                if target is not None and has_models(target[0].file):
                    pending.append((target[0].file, target[1]))


def _in_body(classes: Classes, owner: Ref, name: str) -> tuple[str, ast.FunctionDef] | None:
    node = classes.node(owner)
    for statement in node.body if node is not None else ():
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            return owner.file, statement
    return None


def _named(file: SourceFile, function: ast.FunctionDef) -> Iterator[str]:
    """What a function names of the module that makes masks, by its name there, but for what is harmless."""
    for node in ast.walk(function):
        if isinstance(node, ast.ImportFrom | ast.Import) and "masking_utils" in ast.unparse(node):
            yield ""
        elif isinstance(node, ast.Name) and (imported := file.imports.get(node.id)) is not None:
            name = imported.name or ""
            is_there = MODULE in (imported.module, f"{imported.module}.{name}") and name not in HARMLESS
            # Another module may hand on what it imported.
            if is_there or name in MAKERS:
                yield name


def _bound(file: SourceFile, function: ast.FunctionDef) -> Iterator[str]:
    """The names that the makers have in a function's file."""
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and (imported := file.imports.get(node.id)) is not None:
            if imported.name in MAKERS:
                yield node.id


@remembered
def _names_elsewhere(file: SourceFile) -> bool:
    """Whether a file names makers outside of its functions, where it can't be seen what calls them, or by a star import."""
    makers = {bound for bound, imported in file.imports.items() if imported.name in MAKERS}
    pending: list[ast.AST] = list(file.tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Name) and node.id in makers:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)
    return MODULE in file.star_imports
