"""How many layers stay, and the lists and indexes that go with them."""

from __future__ import annotations

from typing import Any

from .fields import PER_LAYER, Kind, kind
from .sizes import Sizes
from .tree import Node
from .values import shrunk

_LONGEST_PERIOD = 8


def depths(node: Node, layers: int, sizes: Sizes) -> dict[str, Any]:
    """Numbers of layers, and the lists that go with them."""
    values = node.values()
    scalars = {
        name: value
        for name, value in values.items()
        if kind(name) is Kind.LAYERS and isinstance(value, int) and not isinstance(value, bool)
    }
    stages = {
        len(value)
        for name, value in values.items()
        if isinstance(value, list | tuple) and len(value) > 1 and not PER_LAYER.search(name)
        if kind(name) not in (Kind.LAYER_INDEX, Kind.LAYER_SUBSET, Kind.TOKEN)
    }
    found: dict[str, Any] = {}
    periods = [
        value + (1 if name.endswith("offset") else 0)
        for name, value in values.items()
        if kind(name) is Kind.PERIOD
        and isinstance(value, int)
        and not isinstance(value, bool)
        and 1 < value <= _LONGEST_PERIOD
    ]
    # Kinds of layers that come round again and again.
    periods += [
        len(value)
        for name, value in values.items()
        if name.endswith("block_types") and isinstance(value, list | tuple) and len(set(value)) > 1
        if len(value) <= _LONGEST_PERIOD
    ]
    for name, depth in scalars.items():
        if depth <= 1 or (depth in stages and depth <= _LONGEST_PERIOD + 4):
            found[name] = depth
            continue
        if isinstance(nested := values.get("attention_types"), list) and nested and isinstance(nested[0], list):
            found["attention_types"] = [[nested[0][0], 1]]
            found[name] = len(nested[0][0])
            continue
        lists = {
            key: list(value)
            for key, value in values.items()
            if isinstance(value, list | tuple) and len(value) == depth and _per_layer(key, value)
        }
        if lists:
            kept = _one_of_each(lists, depth, layers)
            for key, value in lists.items():
                cut = [value[place] for place in kept]
                if key.endswith("source_layers"):
                    cut = [
                        each if each is None else max((at for at, old in enumerate(kept) if old <= each), default=0)
                        for each in cut
                    ]
                found[key] = (
                    [shrunk(key, each, node, sizes) for each in cut] if kind(key) in (Kind.INNER, Kind.HEADS) else cut
                )
                if set(cut) == {"linear_attention"} and "num_attention_heads" in values:
                    # It is made for layers of both kinds; the cache asks those that attend how long it is.
                    found[key] = [*cut[:-1], "full_attention"]
            found[name] = len(kept)
        else:
            indexes = [
                len(set(value))
                for key, value in values.items()
                if kind(key) is Kind.LAYER_INDEX and isinstance(value, list | tuple)
            ]
            found[name] = min(depth, max([layers, *indexes, *periods]))
    main = max((value for name, value in found.items() if name in scalars), default=layers)
    deepest = max(scalars.values(), default=0)
    for name, value in values.items():
        what = kind(name)
        if what is Kind.LAYERS and isinstance(value, list | tuple):
            # Some code takes a stage's number for a layer's.
            most = max(layers, len(value)) if sizes.keep_stages else layers
            found[name] = type(value)(min(each, most) if isinstance(each, int) else each for each in value)
        elif what is Kind.LAYER_COUNT and isinstance(value, int):
            # Layers that share the keys of others need one of their own kind among those.
            found[name] = 0 if "shared" in name else min(value, main - 1)
        elif what is Kind.LAYER_INDEX and name not in found:
            found[name] = _indexes(value, *_stack(value, scalars, found, (deepest, main)))
        elif what is Kind.LAYER_SUBSET and isinstance(value, list | tuple) and value:
            if len(value) == deepest:
                found[name] = type(value)(value[:main])
            else:
                found[name] = type(value)([main - 1])
    _ordered(values, found)
    out = getattr(node.config, "_out_indices", None)
    if out and hasattr(node.config, "stage_names"):
        found["out_indices"] = _indexes(list(out), deepest, main) if deepest > main else list(out)
    return found


def _ordered(values: dict[str, Any], found: dict[str, Any]) -> None:
    """An index that comes before all of another field's still does, or is the first of them."""
    indexes = {name: value for name, value in values.items() if kind(name) is Kind.LAYER_INDEX and name in found}
    lists = {name: value for name, value in indexes.items() if isinstance(value, list | tuple) and value}
    for name, value in indexes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            continue
        for each, later in lists.items():
            if all(isinstance(place, int) and value < place for place in later):
                found[name] = min(found[name], *found[each])


def _stack(value: Any, scalars: dict[str, int], found: dict[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    """The depth, before and now, of the one stack that is deep enough for the indexes in `value`; `default` if unclear."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, int) for each in value):
        return default
    deep = [name for name, depth in scalars.items() if depth > max(value, default=0)]
    return (scalars[deep[0]], found[deep[0]]) if len(deep) == 1 else default


def _per_layer(name: str, value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a list as long as a stack is deep says something of each layer, and isn't one of the layers' indexes."""
    if PER_LAYER.search(name) or name.endswith("source_layers"):
        return True
    return len(value) > _LONGEST_PERIOD + 4 and len({repr(each) for each in value}) < len(value)


def _one_of_each(lists: dict[str, list[Any]], depth: int, layers: int) -> list[int]:
    """The layers that stay: the first of each combination of kinds, and as many more as were asked for."""
    combined = list(zip(*(map(repr, value) for value in lists.values()), strict=True))
    first = sorted({combined.index(each) for each in combined})
    rest = [place for place in range(depth) if place not in first]
    return sorted([*first, *rest[: max(0, layers - len(first))]])


def _indexes(value: Any, depth: int, main: int) -> Any:
    """Indexes of layers, inside the new depth and still distinct; those from the end stay from the end."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return max(value, -main) if value < 0 else min(value, main - 1) if depth else value
    if not isinstance(value, list | tuple) or not all(isinstance(each, int) for each in value):
        return value
    if not depth or max(value, default=0) > depth:
        # The layers are another part's.
        depth = max((each + 1 for each in value), default=0)
    last = main if any(each >= depth for each in value) else main - 1
    positive = sorted({each for each in value if each >= 0})
    places = {each: max(0, last - (len(positive) - 1 - place)) for place, each in enumerate(positive)}
    negative = sorted({each for each in value if each < 0}, reverse=True)
    places |= {each: max(-main, -1 - place) if each < -main else each for place, each in enumerate(negative)}
    return type(value)(places[each] for each in value)
