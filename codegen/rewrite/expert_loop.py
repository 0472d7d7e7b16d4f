"""Rule `expert-loop`: the forward of experts that loops over those which tokens were sent to is one operator of a graph.

Exact: the operator runs upstream's forward, forwards and, for its gradients, once more backwards. Where it can't (hooks inside, a
quantised part), and where a gradient would be one of zeros instead of none, the graph isn't made, and the region runs uncompiled.
Outside of a graph upstream's forward runs as well.
"""

from __future__ import annotations

import libcst as cst

from ..analyze.classes import Classes
from ..analyze.experts import find
from ..analyze.trees import Trees
from ..facts import Ref
from ..source import Source
from .method import comment_lines, moved_method
from .names import Names

EXPERT_LOOP = "ExpertLoop"
"""The runtime's mixin, whose method is the operator."""

_OTHER = ' or self.config._experts_implementation not in (None, "eager")'
"""Of a decorated class: another forward runs (`get_interface` in transformers/integrations/moe.py)."""


def expert_loop(source: Source, trees: Trees, names: Names, ref: Ref, comment: tuple[str, ...]) -> cst.FunctionDef:
    """The rewritten forward. `comment` is what stands above the operator."""
    origin, experts = source.file(ref.file), find(Classes(source), trees, ref)
    assert experts is not None, f"{ref} lost its loop between analysis and rewriting"
    options = [f"rank={experts.rank}"] if experts.rank is not None else []
    options += [] if experts.is_even else ["is_even=False"]
    options += ["is_chosen=True"] if experts.is_chosen else []
    given = ", ".join((f'"{origin.module}:{ref.name}"', *experts.parameters, *options))
    call = cst.parse_statement(f"return self.loop_over_experts({given})\n")
    assert isinstance(call, cst.SimpleStatementLine)
    method = trees.method(ref, "forward").method
    changed = method.with_changes(body=cst.IndentedBlock([call.with_changes(leading_lines=comment_lines(comment))]))
    # By position, as upstream calls it: the forwards that may run instead of a decorated one call their parameters otherwise.
    passed = ", ".join(experts.parameters)
    return moved_method(names, origin, changed, passed, unless=_OTHER if experts.is_chosen else "")
