"""Methods that record hidden states and attentions by Transformers' hooks:

@capture_outputs
def encode(self, pixel_values, **kwargs): ...
"""

from __future__ import annotations

import ast

from ..facts import Pattern, Ref, Span
from .callgraph import decorators
from .classes import Classes

RECORDER = "capture_outputs"
"""Upstream's decorator (transformers/utils/output_capturing.py)."""


def of_class(classes: Classes, ref: Ref) -> tuple[Pattern, ...]:
    """Those that a class has, its own or inherited."""
    found: dict[str, Pattern | None] = {}
    for owner in classes.mro(ref):
        node = classes.node(owner)
        for method in node.body if node is not None else ():
            if isinstance(method, ast.FunctionDef) and method.name not in found:
                found[method.name] = _pattern(owner, method) if RECORDER in decorators(method) else None
    return tuple(each for each in found.values() if each is not None)


def _pattern(owner: Ref, method: ast.FunctionDef) -> Pattern:
    span = Span(file=owner.file, line=method.lineno)
    return Pattern(
        owner=owner,
        method=method.name,
        first_line=method.lineno,
        last_line=method.end_lineno or method.lineno,
        span=span,
    )
