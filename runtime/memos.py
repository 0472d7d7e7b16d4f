# SPDX-License-Identifier: Apache-2.0
"""What upstream's modules remember of one call for the next.

Rotary embeddings, for calls of the same length, are forgotten. What is made of the weights at first use is kept, as upstream keeps
it even where the weights change later: calls before and after it was made are variants.
"""

import dis
from functools import cache
from typing import Any

from torch import nn

# Upstream's name of the length. Whatever else is remembered is asked for only where the length is the same.
_LENGTH = "cached_sequence_length"
# How a dictionary's name ends, where it is one of such tensors.
_CACHE = "cache"


class Memos:
    """The memos in one module and its parts.

    A graph holds for the length that it found there: each new length would compile once more. And what a graph leaves there
    is a tensor of its own, which no call outside of it should be given. So they are forgotten before and after every run of one:
    a module that finds nothing computes the same again.

    Args:
        module: A region's module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = [part for part in module.modules() if is_remembering(part)]

    def forget(self) -> None:
        for part in self._parts:
            # Written only where there is something, since what watches attributes would see a change.
            if part.__dict__[_LENGTH] is not None:
                part.__dict__[_LENGTH] = None


def is_remembering(part: nn.Module) -> bool:
    """Whether a module remembers what it computed, for calls of the same length."""
    return _LENGTH in part.__dict__


class Made:
    """What one module and its parts make at first use, and have yet to make: `_embed`, which a property `embed` sets where it is
    None, and dictionaries named caches that are empty.

    Args:
        module: A region's module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._yet = [(part, name) for part in module.modules() for name in _yet_to_make(part)]

    def variant(self) -> tuple[bool, ...]:
        """What of it is there now."""
        return tuple(
            bool(held) if type(held := vars(part).get(name)) is dict else held is not None for part, name in self._yet
        )


def _yet_to_make(part: nn.Module) -> tuple[str, ...]:
    cls: Any = type(part)
    held = vars(part)
    empty = (name for name, value in held.items() if type(value) is dict and not value and name.endswith(_CACHE))
    return *empty, *(name for name in _lazy(cls) if held.get(name, part) is None)


@cache
def _lazy(cls: Any) -> tuple[str, ...]:
    """The attributes that properties of their names set."""
    found = [
        (f"_{name}", each.fget) for base in cls.__mro__ for name, each in vars(base).items() if type(each) is property
    ]
    return tuple(name for name, function in found if name in stored(function))


def stored(function: Any) -> frozenset[str]:
    """The attributes, of whatever object, that a function sets."""
    code = getattr(function, "__code__", None)
    instructions = dis.get_instructions(code) if code is not None else ()
    return frozenset(str(each.argval) for each in instructions if each.opname == "STORE_ATTR")
