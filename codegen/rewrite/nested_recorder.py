"""Rule `nested-recorder`: what a module inside records for itself doesn't end the recording around it.

Exact: in eager, upstream's recorder puts back the one around it when it is done, and in a graph it forgets it. Upstream's own method
runs in both.
"""

from __future__ import annotations

import textwrap

import libcst as cst

from ..analyze import forward as declared
from ..analyze.trees import Trees
from ..facts import ParameterKind, Pattern
from ..plan import Rewrite
from ..source import Source
from .method import comment_lines, moved_method
from .names import Names
from .region_forward import WITHIN, passed_on

_REST = "kwargs"


def nested_recorder(
    source: Source, trees: Trees, names: Names, found: Pattern, comment: tuple[str, ...]
) -> cst.FunctionDef:
    """The method that calls upstream's. `comment` is what stands above the call."""
    origin, tree = source.file(found.owner.file), trees.method(found.owner, found.method)
    parameters = declared.parameters(origin, tree.node)
    params = tree.method.params
    if not any(each.kind is ParameterKind.VAR_KEYWORD for each in parameters):
        # Upstream's decorators take more than the method.
        params = params.with_changes(star_kwarg=cst.Param(name=cst.Name(_REST)))
    passed = passed_on(parameters, _REST)
    call = cst.parse_statement(f"return {WITHIN}(super().{found.method}, {passed})")
    body = tree.method.body.with_changes(body=[call.with_changes(leading_lines=comment_lines(comment))])
    return moved_method(names, origin, tree.method.with_changes(params=params, body=body), passed, own=WITHIN)


def nested_comment(rewrite: Rewrite) -> tuple[str, ...]:
    """What stands above the call of a recorder."""
    place = f"{rewrite.span.file.rpartition('/')[2]}:{rewrite.first_line}"
    text = f"vgen {rewrite.rule}: upstream's recorder forgets, in a graph, the one around it ({place})."
    return tuple(textwrap.wrap(text, 110))
