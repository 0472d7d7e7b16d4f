"""Grouped-query attention for one new token: a branch of upstream's SDPA function that runs in eager and not in graphs.

    elif q_length == 1 and not is_torchdynamo_compiling():
        query = pack_gqa(query, module.num_key_value_groups)

(`sdpa_attention_forward` in transformers/integrations/sdpa_attention.py). In a graph it repeats keys and values instead: other
numbers in the last bits, and as many times the memory traffic as query heads share a key-value head.
"""

from __future__ import annotations

import ast

from ..facts import InterfaceLookup, Ref, Span
from ..memo import remembered
from ..source import Source
from .callgraph import RENAMING, decorators
from .classes import Classes

SDPA = Ref(file="transformers/integrations/sdpa_attention.py", name="sdpa_attention_forward")
FUNCTIONS = "ALL_ATTENTION_FUNCTIONS"
"""Upstream's table of attention functions by name."""
GROUPS = "num_key_value_groups"
"""The attribute by which SDPA's function knows how many query heads share a key-value head."""


def lookup(classes: Classes, ref: Ref, owner: Ref, method: ast.FunctionDef) -> InterfaceLookup | None:
    """The lookup in a method of `owner` as the class `ref` runs it, None where no branch is lost: there is no lookup, the class
    has no groups, or this Transformers has no such branch. What most decorators add would be lost with the method's body moved."""
    lookups = (node for node in ast.walk(method) if isinstance(node, ast.stmt) and is_lookup(node))
    found = next(lookups, None)
    if found is None or set(decorators(method)) - RENAMING or not _has_groups(classes, ref):
        return None
    branch = eager_branch(classes.source)
    if branch is None:
        return None
    return InterfaceLookup(
        owner=owner, method=method.name, branch=branch, span=Span(file=owner.file, line=found.lineno)
    )


def is_lookup(node: ast.AST) -> bool:
    """Whether a statement is `name = ALL_ATTENTION_FUNCTIONS.get_interface(…)`, or `[…]`, annotated or not."""
    match node:
        case ast.Assign(targets=[ast.Name()], value=value) | ast.AnnAssign(target=ast.Name(), value=value):
            match value:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="get_interface")):
                    return name == FUNCTIONS
                case ast.Subscript(value=ast.Name(id=name)):
                    return name == FUNCTIONS
    return False


@remembered
def eager_branch(source: Source) -> Span | None:
    """The branch for one new token that the installed `sdpa_attention_forward` takes outside of graphs only."""
    file = source.find_file(SDPA.file)
    definition = file.definitions.get(SDPA.name) if file is not None else None
    for node in ast.walk(definition.node) if definition is not None else ():
        if isinstance(node, ast.If) and _names(node.test, "is_torchdynamo_compiling"):
            if any(_names(statement, "pack_gqa") for statement in node.body):
                return Span(file=SDPA.file, line=node.lineno)
    return None


def _names(node: ast.AST, name: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node))


def _has_groups(classes: Classes, ref: Ref) -> bool:
    """Whether an `__init__` that the class runs sets the number of groups, to something else than 1."""
    for owner in classes.mro(ref):
        node = classes.node(owner)
        for statement in ast.walk(node) if node is not None else ():
            match statement:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=attribute)], value=value):
                    if attribute == GROUPS:
                        return not (isinstance(value, ast.Constant) and value.value == 1)
    return False
