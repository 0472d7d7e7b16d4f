"""The record of one difference, and the one place that tells what came from what went."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from ..facts import Span

Key = TypeVar("Key")


class Kind(StrEnum):
    """What changed, in the order in which a reader wants to hear of it."""

    MODEL = "model"
    ENTRY = "entry"
    CLASS = "class"
    FORWARD = "forward"
    PARAMETER = "parameter"
    CHILD = "child"
    HELPER = "hoistable helper"
    REGION = "region"
    GRANULARITY = "granularity"
    CONTRACT = "contract"
    CARRIER = "carrier"
    REWRITE = "rewrite"
    HAZARD = "hazard"
    PACKAGE = "used package"


class Effect(StrEnum):
    CAME = "came"
    WENT = "went"
    CHANGED = "changed"
    MOVED = "moved"
    RENAMED = "renamed"
    RESOLVED = "resolved"
    UNRESOLVED = "no longer resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference. `before` and `after` are text for people, None where there is nothing to say; a span is None where
    the thing doesn't exist on that side."""

    kind: Kind
    effect: Effect
    subject: str
    before: str | None = None
    after: str | None = None
    old: Span | None = None
    new: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One side of a comparison: what it is, in words, and where it stands."""

    subject: str
    text: str | None = None
    span: Span | None = None


def compared(kind: Kind, old: dict[Key, Thing], new: dict[Key, Thing]) -> Iterator[Change]:
    """What went, came, or has another text, by key: in the old order, then the new."""
    for key in _union(old, new):
        before, after = old.get(key), new.get(key)
        if before is not None and after is not None:
            if before.text != after.text:
                yield changed(kind, after.subject, before, after)
        elif before is not None:
            yield Change(kind=kind, effect=Effect.WENT, subject=before.subject, before=before.text, old=before.span)
        elif after is not None:
            yield Change(kind=kind, effect=Effect.CAME, subject=after.subject, after=after.text, new=after.span)


def changed(kind: Kind, subject: str, before: Thing, after: Thing, effect: Effect = Effect.CHANGED) -> Change:
    return Change(
        kind=kind,
        effect=effect,
        subject=subject,
        before=before.text,
        after=after.text,
        old=before.span,
        new=after.span,
    )


def _union(old: Iterable[Key], new: Iterable[Key]) -> tuple[Key, ...]:
    return tuple(dict.fromkeys((*old, *new)))
