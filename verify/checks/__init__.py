"""What else must hold of a generated class, besides its results: one file for each kind of question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..pair import one_line
from ..results import Finding, Kind
from . import copies, saving, structure
from .context import Context, NotApplicableError
from .hooks import HookWatch

CHECKS: Mapping[str, Callable[[Context], str | None]] = {
    "instances": structure.instances,
    "state": structure.state,
    "tied weights": structure.tied_weights,
    "equal seeds": structure.equal_seeds,
    "save and load": saving.there_and_back,
    "deepcopy": copies.deep_copy,
    "pickle": copies.pickled,
    "to": copies.moved,
    "half": copies.halved,
    "hooks": lambda context: context.hooks[0].problem(context.hooks[1]) if context.hooks else _no_training(),
}


@dataclass(slots=True, kw_only=True)
class Checked:
    passed: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def run_checks(context: Context) -> Checked:
    """Ask every question. One that upstream's own model fails is left out, with the reason."""
    found = Checked()
    for name, check in CHECKS.items():
        try:
            problem = check(context)
        except NotApplicableError as error:
            found.skipped[name] = str(error)
            continue
        except Exception as error:
            problem = f"it raises: {one_line(error)}"
        if problem is None:
            found.passed = (*found.passed, name)
        else:
            found.findings.append(Finding(kind=Kind.CHECK, message=f"{name}: {problem}", case=name))
    return found


def _no_training() -> str | None:
    raise NotApplicableError("no training case ran")


__all__ = ["CHECKS", "Checked", "Context", "HookWatch", "run_checks"]
