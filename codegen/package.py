"""What becomes of one model: a package in memory, or the reason why there is none. Light: no build is imported here."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .decisions import NONE, Decisions
from .errors import VgenError
from .facts import ModelFacts, Span
from .output import RUNTIME
from .plan import Granularity, Plan
from .source import Source

NO_REGION, DEFECT = "no-region", "defect"
"""Codes of failures: nothing in the model can be compiled; vgen itself is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user chooses. `standalone`: import a copy of the runtime that lies beside the package, not the installed one."""

    granularity: Granularity = Granularity.AUTO
    standalone: bool = False
    decisions: tuple[tuple[str, Decisions], ...] = ()
    """By model: what the user's project says about it."""

    def decided(self, model: str) -> Decisions:
        return dict(self.decisions).get(model, NONE)

    def granularity_of(self, model: str) -> Granularity:
        """What the command line asks for has the last word over the project's settings."""
        decided = self.decided(model).granularity
        return (
            Granularity(decided) if self.granularity is Granularity.AUTO and decided is not None else self.granularity
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One generated package, not yet on disk. `runtime_files` is empty unless it is to stand without vgen."""

    model: str
    facts: ModelFacts
    plan: Plan
    files: Mapping[str, str]
    runtime_files: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A model that can't be built, why, and where that was seen. `code` is that of the `VgenError` behind it."""

    model: str
    code: str
    reason: str
    span: Span
    hint: str | None = None

    def error(self) -> VgenError:
        """As it was raised, for those who asked for this model alone."""
        return VgenError(self.code, self.reason, span=self.span, hint=self.hint)


def runtime_files(options: Options) -> dict[str, str]:
    """The copy of the runtime that packages import which stand alone, by path from the folder that holds them."""
    if not options.standalone:
        return {}
    folder = Path(__file__).resolve().parent.parent / "runtime"
    return {f"{RUNTIME}/{path.name}": path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}


def failure(model: str, source: Source, error: Exception) -> Failure:
    """An error as a record; where it names no place, the place is the model's file."""
    place = Span(file=source.modeling_file(model).rel, line=1)
    if isinstance(error, VgenError):
        return Failure(model=model, code=error.code, reason=error.message, span=error.span or place, hint=error.hint)
    # One model that vgen stumbles over is no reason to do without the others.
    where = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    reason = f"vgen failed on this model: {what}."
    hint = "This is a defect of vgen: please report it with the model's name."
    return Failure(model=model, code=DEFECT, reason=reason, span=place, hint=hint)
