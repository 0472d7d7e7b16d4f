"""Two releases of Transformers, model by model: what changed in facts and plan, and then in the generated text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .catalogue import Failure, all_packages
from .compare import Drift, DriftKind
from .errors import VgenError
from .facts import Span
from .lock import LOCK_NAME
from .package import Options, Package
from .semantic import Change, Effect, Kind, changes
from .source import Source

BUILT = "built"

_PLACE = re.compile(r"(\w+\.py):\d+(-\d+)?(, \d+(-\d+)?)*")
"""Comments of generated code name upstream's lines: these alone are no change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """One model that changed: in what it means, in its text, or in both."""

    model: str
    changes: tuple[Change, ...]
    drifts: tuple[Drift, ...]


def resolve(models: Sequence[str], old: Source, new: Source) -> tuple[str, ...]:
    """The folders of the models named, or of all that either release has.

    Raises:
        VgenError: `unknown-model`, for one that neither has.
    """
    if not models:
        return tuple(sorted({*old.models(), *new.models()}))
    found: dict[str, None] = {}
    for model in models:
        try:
            found[new.resolve_model(model)] = None
        except VgenError:
            try:
                found[old.resolve_model(model)] = None
            except VgenError as error:
                message = f"Neither Transformers {old.version} nor {new.version} has a model '{model}'."
                raise VgenError(error.code, message, hint=error.hint) from error
    return tuple(found)


def upgrades(
    models: Sequence[str],
    old: Source,
    new: Source,
    options: Options | None = None,
    step: Callable[[str], None] = lambda model: None,
) -> Iterator[Upgrade]:
    """The models that changed, in the order given, both built with the same options. `step` is told each model as it is built, of either release."""
    had, has = frozenset(old.models()), frozenset(new.models())
    # One release after the other: both at once would be twice the processes and twice the memory.
    before = {
        each.model: each for each in all_packages(old, [model for model in models if model in had], options, step=step)
    }
    after = all_packages(new, [model for model in models if model in has], options, step=step)
    for model in models:
        was, now = before.get(model), next(after) if model in has else None
        found = Upgrade(model=model, changes=_changes(model, was, now), drifts=_drifts(was, now))
        if found.changes or found.drifts:
            yield found


def _changes(model: str, old: Package | Failure | None, new: Package | Failure | None) -> tuple[Change, ...]:
    if isinstance(old, Package) and isinstance(new, Package):
        return changes((old.facts, old.plan), (new.facts, new.plan))
    before, after = _state(old), _state(new)
    if before == after:
        return ()
    effect = Effect.CAME if old is None else Effect.WENT if new is None else Effect.CHANGED
    change = Change(
        kind=Kind.MODEL, effect=effect, subject=model, before=before, after=after, old=_place(old), new=_place(new)
    )
    return (change,)


def _state(built: Package | Failure | None) -> str | None:
    match built:
        case Package():
            return BUILT
        case Failure():
            return f"not built: {built.reason}"
        case None:
            return None


def _place(built: Package | Failure | None) -> Span | None:
    match built:
        case Package():
            return Span(file=built.plan.file, line=1)
        case Failure():
            return built.span
        case None:
            return None


def _drifts(old: Package | Failure | None, new: Package | Failure | None) -> tuple[Drift, ...]:
    """The files whose text differs. Locks are left out: they name the release and so always differ."""
    before, after = _files(old), _files(new)
    found = []
    for path in sorted({*before, *after}):
        was, now = before.get(path), after.get(path)
        if was is None or now is None:
            kind = DriftKind.MISSING if was is None else DriftKind.EXTRA
            found.append(Drift(kind=kind, path=path, on_disk=was, built=now))
        elif _PLACE.sub(r"\1", was) != _PLACE.sub(r"\1", now):
            found.append(Drift(kind=DriftKind.CHANGED, path=path, on_disk=was, built=now))
    return tuple(found)


def _files(built: Package | Failure | None) -> Mapping[str, str]:
    if not isinstance(built, Package):
        return {}
    return {path: text for path, text in built.files.items() if path != LOCK_NAME}
