"""A package as rows, one to a region: the table and `--json` show the same."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..facts import Hazard, ModelFacts, Ref
from ..plan import Granularity, Plan, Region, Rewrite

if TYPE_CHECKING:
    from ..build import Package


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One region. `lines` counts the generated lines of its class and of the generated classes it is made of."""

    tag: str
    cls: str
    role: str
    granularity: str
    dynamic_dims: tuple[str, ...]
    any_shape: tuple[str, ...]
    hoisted: tuple[str, ...]
    rewrites: tuple[str, ...]
    hazards: tuple[str, ...]
    lines: int

    @property
    def dynamic(self) -> tuple[str, ...]:
        """As `Region.dynamic`."""
        return (*self.dynamic_dims, *(f"all of {name}" for name in self.any_shape))

    @property
    def rules(self) -> tuple[str, ...]:
        """The rewrites without the classes they were applied to, each once."""
        return tuple(dict.fromkeys(rewrite.partition(" (")[0] for rewrite in self.rewrites))


def rows(package: Package) -> tuple[Row, ...]:
    """The package's regions, in the plan's order."""
    plan, lengths = package.plan, _lengths(package)
    found = []
    for region in plan.regions:
        within = reach(region, package.facts, plan)
        found.append(
            Row(
                tag=region.tag,
                cls=region.ref.name,
                role=region.role.value,
                granularity=region.cut,
                dynamic_dims=region.dynamic_dims,
                any_shape=region.any_shape,
                hoisted=tuple(call.helper.name for call in region.hoisted),
                rewrites=tuple(describe_rewrite(rewrite) for rewrite in plan.rewrites if rewrite.ref in within),
                hazards=tuple(describe_hazard(hazard) for hazard in plan.unresolved if hazard.owner in within),
                lines=sum(lengths.get(ref.name, 0) for ref in plan.order if ref in within),
            )
        )
    return tuple(found)


def reach(region: Region, facts: ModelFacts, plan: Plan) -> frozenset[Ref]:
    """The region's class, its ancestors, and the classes of the modules inside it; other regions' are theirs.

    With granularity `block` a layer's region lies within no other region's graph, so it ends the walk as well; one that is a
    region in training alone lies within both.
    """
    others = {other.ref for other in plan.regions if not other.only_in_training} - {region.ref}
    seen: set[Ref] = set()
    left = [region.ref]
    while left:
        ref = left.pop()
        if ref in seen or ref in others:
            continue
        seen.add(ref)
        fact = facts.find(ref)
        if fact is not None:
            # What stands in a base class is part of the class as well: hazards and children are noted there.
            left += [child.target for child in fact.children if child.target is not None]
            seen.update(fact.mro)
    return frozenset(seen)


def total_lines(package: Package) -> int:
    """Lines of the Python files that were generated."""
    return sum(text.count("\n") for path, text in package.files.items() if path.endswith(".py") and "/" not in path)


def elsewhere(package: Package) -> tuple[tuple[Rewrite, ...], tuple[Hazard, ...]]:
    """Rewrites and unresolved hazards that no region reaches: they would be in no row."""
    reached = frozenset[Ref]().union(*(reach(region, package.facts, package.plan) for region in package.plan.regions))
    return (
        tuple(rewrite for rewrite in package.plan.rewrites if rewrite.ref not in reached),
        tuple(hazard for hazard in package.plan.unresolved if hazard.owner not in reached),
    )


def describe_rewrite(rewrite: Rewrite) -> str:
    return f"{rewrite.rule} ({rewrite.ref.name})"


def describe_hazard(hazard: Hazard) -> str:
    return f"{hazard.kind.value} {hazard.span}"


def granularity_words(granularity: Granularity) -> str:
    match granularity:
        case Granularity.WHOLE:
            return "one graph"
        case Granularity.BLOCK:
            return "one graph per layer class"
        case Granularity.AUTO:
            return "undecided"


def _lengths(package: Package) -> dict[str, int]:
    """Lines of each generated class, decorators included."""
    found: dict[str, int] = {}
    for path, text in package.files.items():
        if path.endswith(".py") and "/" not in path:
            for node in ast.parse(text).body:
                if isinstance(node, ast.ClassDef):
                    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                    found[node.name] = (node.end_lineno or node.lineno) - first + 1
    return found
