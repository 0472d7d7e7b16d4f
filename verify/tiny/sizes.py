"""Small sizes for a whole tree of configs: a map from values to values, so that what was equal stays equal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .fields import Kind, kind
from .tree import Node

NARROW, WIDE = 32, 64
"""Widths become one of these; those of stages, multiples of 8 up to about `WIDE`."""
VOCABULARY = 256
_SPREAD = 32
"""The widest and the narrowest stage of a pyramid are at most this far apart."""
_PLAIN = 32
"""Token ids below this are special tokens of text that stay what they are."""


class Sizes:
    """What every width, token id and grid of a tree becomes.

    Maps values, not fields: a projection that is as wide as the text model stays so, wherever in the tree it's written.
    """

    def __init__(
        self, tree: Node, narrow: int = NARROW, *, keep_stages: bool = False, keep_widths: bool = False
    ) -> None:
        self.widths: dict[int, int] = {}
        self.narrow = narrow
        self.keep_stages = keep_stages
        self.keep_widths = keep_widths
        for node in tree.all():
            for ladder in _ladders(node):
                self._add_ladder(ladder)
        scalars = {value for node in tree.all() for value in _numbers(node, Kind.WIDTH)}
        for value in sorted(scalars):
            self.widths.setdefault(value, self._width(value))
        self.vocabulary = max(
            (size for node in tree.all() for size in _numbers(node, Kind.VOCABULARY)), default=VOCABULARY
        )
        self.tokens = _tokens(tree)

    def width(self, value: int) -> int:
        return self.widths.get(value, self._width(value))

    def _width(self, value: int) -> int:
        if self.keep_widths or value <= self.narrow:
            return value
        return self.narrow if value <= 1024 else 2 * self.narrow

    def inner(self, value: int, beside: int, *, bottleneck: bool) -> int:
        """The width inside a feed-forward layer; `beside` is the layer's own width before.

        It stays the same part of that width if it may be a `bottleneck`, not one of several experts.
        """
        if self.keep_widths or value in self.widths:
            return self.width(value)
        if beside and value % beside == 0 and value // beside <= 4:
            return value // beside * self.width(beside)
        if bottleneck and 1 < beside // value <= 4 and beside % value == 0:
            return self.width(beside) // (beside // value)
        if value <= self.narrow:
            return value
        return self.narrow + self.narrow // 2 if value <= 1024 else 3 * self.narrow

    def _add_ladder(self, ladder: list[int]) -> None:
        known = [value for value in ladder if value in self.widths]
        ratio = (
            1.0
            if self.keep_stages or self.keep_widths
            else self.widths[known[0]] / known[0]
            if known
            else (8 if self.narrow < WIDE else 32) / min(ladder)
        )
        for value in ladder:
            self.widths.setdefault(value, value if ratio == 1.0 else max(8, round(value * ratio / 8) * 8))


def _ladders(node: Node) -> Iterator[list[int]]:
    """The widths of the stages of a pyramid: a list that rises, or a first width doubled from stage to stage."""
    values = node.values()
    stages = [
        len(value) for name, value in values.items() if kind(name) is Kind.LAYERS and _ints(value) and len(value) > 1
    ]
    for name, value in values.items():
        if kind(name) is not Kind.WIDTH:
            continue
        if _ints(value) and len(set(value)) > 1:
            ladder = sorted({each for each in value if each > 16})
            if ladder and max(ladder) <= _SPREAD * min(ladder):
                yield ladder
        elif (
            isinstance(value, int)
            and stages
            and name.startswith(("embed", "base", "hidden_size", "embedding", "patch_embeds"))
        ):
            last = value * 2 ** (stages[0] - 1)
            if name.startswith("embed") or last in values.values():
                yield [value * 2**stage for stage in range(stages[0] + 1)]


def _tokens(tree: Node) -> dict[int, int]:
    """New ids for those that are outside a small vocabulary: its last ones, in the same order."""
    ids: set[int] = set()
    sizes = [
        size for node in tree.all() for name in ("vocab_size",) if isinstance(size := node.values().get(name), int)
    ]
    for node in tree.all():
        for name, value in [*vars(node.config).items(), *node.values().items()]:
            if kind(name) is Kind.TOKEN:
                ids.update(each for each in (value if isinstance(value, list | tuple) else [value]) if _is_id(each))
    last = min([VOCABULARY, *(size for size in sizes if size > _PLAIN)])
    far = sorted(each for each in ids if each >= min(_PLAIN, last))
    return {each: last - len(far) + place for place, each in enumerate(far)}


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _numbers(node: Node, wanted: Kind) -> Iterable[int]:
    for name, value in node.values().items():
        if kind(name) is wanted:
            for each in value if isinstance(value, list | tuple) else [value]:
                if isinstance(each, int) and not isinstance(each, bool) and each > 0:
                    yield each


def _ints(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    )
