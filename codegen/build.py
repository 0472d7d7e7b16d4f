"""The whole build of one model in memory: source → facts → plan → text. Nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..runtime.digest import class_digests
from .analyze.model import analyze
from .analyze.prologue import helper_chain
from .facts import ModelFacts, Ref
from .format import formatted
from .lock import LOCK_NAME, Lock, digest, render_lock
from .output import RUNTIME
from .plan import Granularity, Plan, make_plan
from .render import render, templates_digest
from .source import Source

RUNTIME_FOLDER = Path(__file__).resolve().parent.parent / "runtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One generated package, not yet on disk. `runtime_files` is empty unless it is to stand without vgen."""

    model: str
    facts: ModelFacts
    plan: Plan
    files: Mapping[str, str]
    runtime_files: Mapping[str, str]


def generate(
    model: str, source: Source, *, granularity: Granularity = Granularity.AUTO, standalone: bool = False
) -> Package:
    """Build one model's package in memory.

    Args:
        model: A folder of `source.models()`.
        standalone: Import a copy of the runtime that lies beside the package, instead of the installed one.

    Raises:
        VgenError: The source can't be read, or has nothing to compile.
    """
    facts = analyze(source, model)
    plan = make_plan(facts, granularity)
    runtime = f"..{RUNTIME}" if standalone else "vgen.runtime"
    files = formatted(render(source, facts, plan, runtime=runtime))
    lock = Lock(
        model=model,
        vgen=__version__,
        transformers=source.version,
        granularity=granularity.value,
        standalone=standalone,
        templates=templates_digest(),
        upstream=_upstream_digests(source, plan),
        outputs={path: digest(text) for path, text in files.items()},
    )
    return Package(
        model=model,
        facts=facts,
        plan=plan,
        files={**files, LOCK_NAME: render_lock(lock)},
        runtime_files=_runtime_files() if standalone else {},
    )


def _upstream_digests(source: Source, plan: Plan) -> dict[str, dict[str, str]]:
    """The digest of every upstream definition that the generated text was made from, by file."""
    used: set[Ref] = set(plan.order)
    used.update(carrier.init for carrier in plan.carriers)
    for call in (call for region in plan.regions for call in region.hoisted):
        used.update(helper_chain(source, call.helper))
    files = sorted({ref.file for ref in used})
    return {
        file: class_digests(source.file(file).text, sorted(ref.name for ref in used if ref.file == file))
        for file in files
    }


def _runtime_files() -> dict[str, str]:
    return {f"{RUNTIME}/{path.name}": path.read_text(encoding="utf-8") for path in sorted(RUNTIME_FOLDER.glob("*.py"))}
