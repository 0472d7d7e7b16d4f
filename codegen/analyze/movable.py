"""Methods whose body can be written anew in a subclass, with parts of it changed."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Ref
from .callgraph import RENAMING, call_graph, decorators
from .classes import Classes, has_models
from .trees import Tree, Trees


def movable(classes: Classes, trees: Trees, ref: Ref, text: str) -> Iterator[Tree]:
    """The methods of a class that its forward reaches, itself among them, in files that have `text`: those without decorators,
    which would be lost, and that don't ask for their class by `super()`."""
    for reached in call_graph(classes).reach(ref, frozenset()):
        owner, method = reached.owner, reached.function
        if owner not in classes.mro(ref) or not has_models(owner.file) or set(decorators(method)) - RENAMING:
            continue
        file = classes.source.file(owner.file)
        if file.is_copy or text not in file.text:
            continue
        tree = trees.method(owner, method.name)
        if "super(" not in tree.text:
            yield tree
