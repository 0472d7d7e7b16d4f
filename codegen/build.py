"""The whole build of one model in memory: source → facts → plan → text. Nothing is written here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .. import __version__
from ..runtime.digest import class_digests
from .analyze.classes import has_models
from .analyze.grouped import SDPA
from .analyze.model import analyze
from .analyze.prologue import helper_chain
from .facts import ModelFacts, Ref
from .format import checked, formatted
from .local import Local
from .lock import LOCK_NAME, CopiedFrom, Lock, digest, render_lock
from .output import RUNTIME
from .package import Failure, Options, Package, failure, runtime_files
from .plan import Plan, Rule
from .planning import make_plan
from .render import render, templates_digest
from .source import Source

__all__ = ["Package", "build_chunk", "generate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A package before it is formatted, and what its lock names."""

    transformers: str
    facts: ModelFacts
    plan: Plan
    files: Mapping[str, str]
    upstream: Mapping[str, Mapping[str, str]]


def generate(model: str, source: Source, options: Options = Options()) -> Package:  # noqa: B008 (it is frozen)
    """Build one model's package in memory. `model` is a folder of `source.models()`, or the name of `source.local`.

    Raises:
        VgenError: The source can't be read, or has nothing to compile.
    """
    with source.placed():
        draft = _draft(model, source, options)
        return _package(draft, formatted([draft.files])[0], options, source.local)


def build_chunk(models: Iterable[tuple[str, Source]], options: Options) -> tuple[Package | Failure, ...]:
    """Build several models, in the order given; one that fails doesn't stop the others.

    They are formatted together, because starting the formatter takes longer than its work on a package. `models` is
    drawn from one by one, and no source is kept: the next may be drawn when the one before can be let go.
    """
    found: list[tuple[str, _Draft | Failure]] = []
    for model, source in models:
        try:
            found.append((model, _draft(model, source, options)))
        except Exception as error:
            found.append((model, failure(model, source, error)))
    drafts = {model: draft for model, draft in found if isinstance(draft, _Draft)}
    texts = dict(zip(drafts, formatted([draft.files for draft in drafts.values()]), strict=True))
    return tuple(
        draft if isinstance(draft, Failure) else _package(draft, texts[model], options) for model, draft in found
    )


def _draft(model: str, source: Source, options: Options) -> _Draft:
    facts = analyze(source, model, options.decided(model))
    plan = make_plan(facts, options.granularity_of(model))
    files = render(source, facts, plan, runtime=f"..{RUNTIME}" if options.standalone else "vgen.runtime")
    return _Draft(
        transformers=source.version,
        facts=facts,
        plan=plan,
        files=checked(files),
        upstream=_upstream_digests(source, facts, plan),
    )


def _package(draft: _Draft, files: Mapping[str, str], options: Options, local: Local | None = None) -> Package:
    copies = local.copies() if local is not None else {}
    files = {**files, **copies}
    lock = Lock(
        model=draft.plan.model,
        vgen=__version__,
        transformers=draft.transformers,
        granularity=options.granularity.value,
        standalone=options.standalone,
        templates=templates_digest(),
        decisions=options.decided(draft.plan.model).rows(),
        upstream=draft.upstream,
        outputs={path: digest(text) for path, text in files.items()},
        copied=CopiedFrom(file=local.main, path=local.origin) if local is not None else None,
    )
    return Package(
        model=draft.plan.model,
        facts=draft.facts,
        plan=draft.plan,
        files={**files, LOCK_NAME: render_lock(lock)},
        runtime_files=runtime_files(options),
    )


def _upstream_digests(source: Source, facts: ModelFacts, plan: Plan) -> dict[str, dict[str, str]]:
    """The digest of every upstream definition that the generated text was made from, by file.

    A model outside of Transformers isn't made for one release of it: the classes of Transformers' models that it inherits from
    and that it makes are among them.
    """
    used: set[Ref] = set(plan.order)
    used.update(carrier.init for carrier in plan.carriers if carrier.init is not None)
    used.update(owner for carrier in plan.carriers for owner, _ in carrier.methods)
    for call in (call for region in plan.regions for call in region.hoisted):
        used.update((*helper_chain(source, call.helper), *call.through))
    if source.local is not None:
        used.update(base for ref in plan.order for base in facts.of(ref).mro if has_models(base.file))
        children = (child for carrier in plan.carriers for child in carrier.exchanged)
        used.update(child.target for child in children if child.target is not None)
    if any(rewrite.rule is Rule.GROUPED_ATTENTION for rewrite in plan.rewrites):
        used.add(SDPA)
    return {
        rel: class_digests(file.text, sorted(ref.name for ref in used if ref.file == rel), tree=file.tree)
        for rel, file in ((rel, source.file(rel)) for rel in sorted({ref.file for ref in used}))
        # Copies are outputs, and so have digests of the whole.
        if not file.is_copy
    }
