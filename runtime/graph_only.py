# SPDX-License-Identifier: Apache-2.0
"""Branches of upstream's code that only a graph takes: a graph that went through one isn't what eager computes."""

import re
from collections.abc import Iterator, Sequence, Set

from torch.fx import GraphModule

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


class GraphOnlyError(Exception):
    """A captured graph computes by such a branch."""


def refuse(graph: GraphModule, places: Sequence[str]) -> None:
    """Raise where a captured graph went through one of these places.

    Args:
        graph: What a `torch.compile` backend is handed.
        places: `folder/file.py:first-last` each, lines of a branch. The folders tell upstream's files from generated ones.

    Raises:
        GraphOnlyError: It did. Dynamo wraps this as it does what any backend raises.
    """
    frames = set(_frames(graph)) if places else set()
    for place in places:
        if _is_taken(place, frames):
            name = place.rpartition("/")[2]
            raise GraphOnlyError(f"in a graph upstream takes {name} instead of what it computes in eager")


def _is_taken(place: str, frames: Set[tuple[str, int]]) -> bool:
    file, _, lines = place.rpartition(":")
    first, _, last = lines.partition("-")
    wanted = range(int(first), int(last) + 1)
    return any(line in wanted and name.endswith(f"/{file}") for name, line in frames)


def _frames(graph: GraphModule) -> Iterator[tuple[str, int]]:
    """The source lines that a graph's operators come from, those of the graphs inside of it included: checkpointed layers
    are such."""
    for part in graph.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            for name, line in _FRAME.findall(node.stack_trace or ""):
                yield name.replace("\\", "/"), int(line)
