"""The support matrix: what vgen makes of every model type of a Transformers, as data for `docs/support.*`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from ..verify.packages import digest
from ..verify.results import Record
from .catalogue import Failure
from .facts import Hazard, Span
from .kind import kind_of
from .package import Package
from .plan import Plan, Region
from .source import PACKAGE, Source
from .verified import State, Verified, verified


class TypeState(StrEnum):
    """What becomes of one model type. PART: no auto class makes it alone, it is a part of other models."""

    BUILT = "built"
    ELSEWHERE = "in another package"
    PART = "part"
    MISSING = "not built"


class Status(StrEnum):
    BUILT = "built"
    ELSEWHERE = "in another package"
    PART = "part"
    FAILED = "not built"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelType:
    name: str
    state: TypeState
    package: str | None = None
    """The package that has its classes, where that is another model's."""
    missing: tuple[str, ...] = ()
    """The classes that no package has, where it is not built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An unresolved hazard."""

    kind: str
    message: str
    span: Span
    level: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One folder of Transformers with the model types that stand in it."""

    model: str
    types: tuple[ModelType, ...]
    kind: str | None
    regions: tuple[Region, ...]
    uses: tuple[str, ...]
    rewrites: tuple[str, ...]
    hazards: tuple[Found, ...]
    entries: tuple[str, ...]
    status: Status
    reason: str | None
    span: Span | None
    verified: Verified | None = None
    """What `vgen verify` found, if it ran."""

    @property
    def granularity(self) -> tuple[str, ...]:
        return tuple(sorted({region.cut for region in self.regions}, reverse=True))

    @property
    def dynamic(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(dim for region in self.regions for dim in region.dynamic))

    @property
    def hoisted(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(call.helper.name for region in self.regions for call in region.hoisted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All rows, by model. Totals are pairs of words and number, in the order to show them."""

    transformers: str
    rows: tuple[Row, ...]

    @property
    def is_verified(self) -> bool:
        """Whether `vgen verify` has anything to say: else the report has no columns for it."""
        return any(row.verified is not None for row in self.rows)

    @property
    def verification(self) -> tuple[tuple[str, int], ...]:
        """How many packages are proved, and how many not and why."""
        counted = Counter(row.verified.state for row in self.rows if row.verified is not None)
        return tuple((state.value, counted[state]) for state in State if counted[state])

    @property
    def verified_with(self) -> tuple[str, ...]:
        """The settings behind the figures."""
        found = {row.verified.settings for row in self.rows if row.verified is not None}
        return tuple(sorted(each for each in found if each is not None))

    @property
    def types(self) -> Mapping[str, int]:
        counted = Counter(each.state for row in self.rows for each in row.types)
        return {state.value: counted[state] for state in TypeState}

    @property
    def listed(self) -> int:
        """Model types that an auto class can make."""
        return sum(self.types.values()) - self.types[TypeState.PART]

    @property
    def covered(self) -> int:
        return self.types[TypeState.BUILT] + self.types[TypeState.ELSEWHERE]

    @property
    def share(self) -> str:
        """Of the listed types, in percent, rounded down: it never claims more than there is."""
        return f"{self.covered * 1000 // max(self.listed, 1) / 10:.1f}"

    @property
    def totals(self) -> tuple[tuple[str, int], ...]:
        built = [row for row in self.rows if row.status is Status.BUILT]
        regions = [region for row in built for region in row.regions]
        granularity = Counter(region.granularity.value for region in regions)
        return (
            ("packages", len(built)),
            ("regions", len(regions)),
            ("compiled whole", granularity["whole"]),
            ("compiled by block", granularity["block"]),
            ("compiled whole, by layer in training", sum(1 for region in regions if region.by_layer is not None)),
            ("packages with hoisted calls", sum(1 for row in built if row.hoisted)),
            ("packages with rewrites", sum(1 for row in built if row.rewrites)),
            ("packages with unresolved hazards", sum(1 for row in built if row.hazards)),
            ("folders not built", sum(1 for row in self.rows if row.status is Status.FAILED)),
        )

    @property
    def kinds(self) -> tuple[tuple[str, int], ...]:
        """Kind and number of packages, most first."""
        counted = Counter(row.kind for row in self.rows if row.kind is not None)
        return tuple(sorted(counted.items(), key=lambda each: (-each[1], each[0])))


def make_report(source: Source, built: Iterable[Package | Failure], record: Record = Record()) -> Report:  # noqa: B008
    """Put together what was built from `source`, and what `record` says of it. Each package is let go of once its row is
    made."""
    types: dict[str, list[str]] = {}
    for name, folder in sorted(source.folders.items()):
        types.setdefault(folder, []).append(name)
    rows, digests = {}, {}
    for each in built:
        if each.model in types:
            rows[each.model] = _row(each)
            if isinstance(each, Package):
                digests[each.model] = digest({name: text.encode() for name, text in each.files.items()})
    for model in digests:
        found = verified(model, record, digests, source.version)
        rows[model] = replace(rows[model], verified=found)
    rows |= {folder: _absent(source, folder) for folder in types if folder not in rows}
    made_in = {entry: row.model for row in rows.values() for entry in row.entries}
    listed = _listed(source)
    return Report(
        transformers=source.version,
        rows=tuple(
            _with_types(
                rows[folder],
                tuple(_type(name, listed.get(name, frozenset()), folder, made_in) for name in types[folder]),
            )
            for folder in sorted(rows)
        ),
    )


def _row(built: Package | Failure) -> Row:
    if isinstance(built, Failure):
        return _unbuilt(built.model, built.reason, built.span)
    plan = built.plan
    return Row(
        model=built.model,
        types=(),
        kind=kind_of(built.facts),
        regions=tuple(region for region in plan.regions if not region.only_in_training),
        uses=plan.packages,
        rewrites=tuple(dict.fromkeys(rewrite.rule for rewrite in plan.rewrites)),
        hazards=_hazards(plan),
        entries=tuple(ref.name for ref in plan.entries),
        status=Status.BUILT,
        reason=None,
        span=Span(file=plan.file, line=1),
    )


def _hazards(plan: Plan) -> tuple[Found, ...]:
    """Each place once: classes that share a method share its hazards."""
    found = {(hazard.span, hazard.message): _found(hazard) for hazard in plan.unresolved}
    return tuple(found[key] for key in sorted(found))


def _found(hazard: Hazard) -> Found:
    return Found(kind=hazard.kind.value, message=hazard.message, span=hazard.span, level=hazard.level.value)


def _unbuilt(model: str, reason: str, span: Span) -> Row:
    return Row(
        model=model,
        types=(),
        kind=None,
        regions=(),
        uses=(),
        rewrites=(),
        hazards=(),
        entries=(),
        status=Status.FAILED,
        reason=reason,
        span=span,
    )


def _absent(source: Source, folder: str) -> Row:
    path = f"{PACKAGE}/models/{folder}"
    configuration = f"{path}/configuration_{folder}.py"
    file = configuration if source.find_file(configuration) is not None else f"{path}/__init__.py"
    return _unbuilt(folder, f"{path} has no modeling_{folder}.py.", Span(file=file, line=1))


def _listed(source: Source) -> dict[str, frozenset[str]]:
    """Model type → the classes that the auto classes make of it."""
    found: dict[str, set[str]] = {}
    for auto_class in source.file(f"{PACKAGE}/models/auto/modeling_auto.py").definitions:
        if auto_class.startswith("Auto"):
            for name, made in source.auto_models(auto_class).items():
                found.setdefault(name, set()).add(made)
    return {name: frozenset(made) for name, made in found.items()}


def _type(name: str, made: frozenset[str], folder: str, made_in: Mapping[str, str]) -> ModelType:
    packages = sorted({made_in[cls] for cls in made if cls in made_in})
    if not made:
        return ModelType(name=name, state=TypeState.PART)
    if folder in packages:
        return ModelType(name=name, state=TypeState.BUILT)
    if packages:
        return ModelType(name=name, state=TypeState.ELSEWHERE, package=packages[0])
    return ModelType(name=name, state=TypeState.MISSING, missing=tuple(sorted(made)))


def _with_types(row: Row, types: tuple[ModelType, ...]) -> Row:
    """The row with its model types; where no package was built for it, or not for all of them, with what that means."""
    row = replace(row, types=types)
    missing = [name for each in types for name in each.missing]
    elsewhere = dict.fromkeys(each.package for each in types if each.package is not None)
    if row.status is Status.BUILT and missing:
        return replace(row, reason=f"No package has {', '.join(dict.fromkeys(missing))}.")
    if row.status is Status.FAILED and not missing:
        where = (
            f"Its classes are those of {', '.join(elsewhere)}." if elsewhere else "No auto class makes a model of it."
        )
        return replace(row, status=Status.ELSEWHERE if elsewhere else Status.PART, reason=where)
    return row
