"""A config read: its own fields with their values, and its sub-configs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from .fields import Kind, kind

_BASE = frozenset(field.name for field in dataclasses.fields(PreTrainedConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A config's class, the values that it was given or has by default, what it made of them itself, and its parts."""

    config: Any
    given: dict[str, Any]
    derived: dict[str, Any]
    """Fields that the class computes from the others where they are None."""
    parts: dict[str, Node]

    def all(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        for part in self.parts.values():
            yield from part.all()

    def values(self) -> dict[str, Any]:
        return self.derived | self.given


def read(config: PreTrainedConfig) -> Node:
    """`config` as a tree; its parts are the sub-configs that it holds.

    Raises:
        CannotShrinkError never; what the class raises when it is made from its own values is taken as "nothing is derived".
    """
    defaults = _defaults(type(config))
    # Not by `getattr`: of fields that differ from layer to layer it refuses to tell the common value.
    held = vars(config)
    # A field that is another's second name is held under the other.
    names = {name: config.attribute_map.get(name, name) for name in defaults}
    recounted = _recounted(config, defaults)
    values = {name: held[kept] for name, kept in names.items() if kept in held} | recounted
    parts = {name: read(value) for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)}
    own = {name: value for name, value in values.items() if name not in parts}
    optional = {name for name in own if defaults[name] is None and own[name] is not None}
    computed = _computed(config, own, optional)
    derived = {name: own[name] for name in sorted(optional) if name in computed and computed[name] == own[name]}
    given = {name: value for name, value in own.items() if name not in derived}
    if recounted:
        # It counts anew unless it's told that it did.
        derived = {name: value for name, value in derived.items() if kind(name) is not Kind.LAYERS}
    return Node(config=config, given=given, derived=derived, parts=parts)


def _recounted(config: PreTrainedConfig, defaults: dict[str, Any]) -> dict[str, Any]:
    """Numbers of layers that the class changes itself once it is given them, as they were given.

    A class that counts a layer once for each time it's run, say, would do so again. Only where all are the defaults: of others
    it isn't known what was given.
    """
    held = vars(config)
    changed = {
        name: value
        for name, value in defaults.items()
        if kind(name) is Kind.LAYERS and isinstance(value, int) and held.get(name) != value
    }
    if not changed:
        return {}
    try:
        fresh = vars(type(config)())
    except Exception:  # a validator's error: it can't be made from defaults
        return {}
    return {name: value for name, value in changed.items() if fresh.get(name) == held.get(name)}


def _defaults(cls: type) -> dict[str, Any]:
    """The fields that the class's initializer takes, with their defaults."""
    if dataclasses.is_dataclass(cls) and "__init__" in vars(cls):
        found: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.init and field.name not in _BASE:
                found[field.name] = field.default if field.default is not dataclasses.MISSING else ...
        if found:
            return found
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return {
        each.name: each.default
        for each in parameters
        if each.kind is each.POSITIONAL_OR_KEYWORD and each.name != "self"
    }


def _computed(config: PreTrainedConfig, own: dict[str, Any], optional: set[str]) -> dict[str, Any]:
    """What the class makes of the optional fields if they aren't given."""
    if not optional:
        return {}
    try:
        again = type(config)(**{name: value for name, value in own.items() if name not in optional})
    except Exception:  # any validator's error: then all of them are needed
        return {}
    return {name: vars(again).get(name) for name in optional}
