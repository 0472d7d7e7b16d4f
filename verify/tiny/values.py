"""What one field of a config becomes, for what its name means."""

from __future__ import annotations

import copy
from math import gcd
from typing import Any

from . import relations
from .fields import Kind, kind
from .sizes import VOCABULARY, Sizes
from .tree import Node

_HEADS = 4
_EXPERTS = 4
_SPAN = 2
_POSITIONS = 512
_FRAMES = 64
_WINDOW = 8
_COUNT = 8
_FILTERS = 4
QUERIES = "patch_to_query_dict"
"""The end of a field's name that maps numbers of patches to numbers of queries."""


def shrunk(name: str, value: Any, node: Node, sizes: Sizes) -> Any:
    """A field's new value, for what its name means; fields that depend on others are seen to in `relations`."""
    if isinstance(value, bool) or value is None:
        return value
    what = kind(name)
    if what is Kind.TOKEN:
        return shrunk_tokens(value, sizes)
    if isinstance(value, list | tuple):
        if what in (Kind.WIDTH, Kind.INNER):
            return type(value)(shrunk(name, each, node, sizes) for each in value)
        if what is Kind.HEADS and value and all(isinstance(each, int) for each in value):
            common = gcd(*value) or 1
            return type(value)(
                max(1, each // common) if max(value) // common <= 16 else min(each, _HEADS) for each in value
            )
        if what in (Kind.EXPERTS, Kind.TOP_K, Kind.WINDOW):
            return type(value)(shrunk(name, each, node, sizes) for each in value)
        return copy.deepcopy(value)
    if isinstance(value, float) and name in relations.COEFFICIENTS:
        return min(value, 1.0)
    if isinstance(value, dict) and name.endswith(QUERIES):
        return {patches: min(4, *value.values()) for patches in (4, 16, 64)}
    if not isinstance(value, int):
        return copy.deepcopy(value)
    if value <= 0:
        return value
    match what:
        case Kind.WIDTH:
            return sizes.width(value)
        case Kind.INNER:
            bottleneck = not any("expert" in each for each in node.values())
            return sizes.inner(value, relations.width(node.values()), bottleneck=bottleneck)
        case Kind.HEADS:
            return relations.heads(name, value, node)
        case Kind.HEAD_DIM:
            return 16 if value >= 128 else 8 if value > 16 else value
        case Kind.VOCABULARY:
            return min(value, VOCABULARY)
        case Kind.POSITIONS:
            return min(value, _POSITIONS)
        case Kind.FRAMES:
            return min(value, _FRAMES)
        case Kind.SPAN:
            return min(value, _SPAN)
        case Kind.EXPERTS:
            return min(value, _EXPERTS)
        case Kind.TOP_K:
            return min(value, 2)
        case Kind.EXPERT_GROUPS:
            return min(value, 2)
        case Kind.TOP_GROUPS:
            return 1
        case Kind.GROUPS:
            return (
                sizes.widths[value] if value in sizes.widths and value > 32 else gcd(value, 4) if value > 4 else value
            )
        case Kind.WINDOW:
            return min(value, _WINDOW)
        case Kind.COUNT:
            return min(value, _COUNT)
        case Kind.FILTERS:
            return value if sizes.keep_widths else min(value, _FILTERS)
        case _:
            return value


def shrunk_tokens(value: Any, sizes: Sizes) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(shrunk_tokens(each, sizes) for each in value)
    return sizes.tokens.get(value, value) if isinstance(value, int) else value
