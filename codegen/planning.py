"""Facts → plan. Pure: no file is read here."""

from __future__ import annotations

import dataclasses

from .by_layer import ByLayer, by_layer
from .carriers import carriers_of, dispatched
from .embedding import embedding, resolved
from .errors import VgenError
from .facts import ChildKind, Hazard, ModelFacts, Ref, Role, RoleFact
from .plan import BY_LAYER, Granularity, Plan, Rule
from .reach import package_of, reached
from .regions import apart, once, regions_of
from .rewrites import rewrites_of

_LIST = "`vgen list` shows what can be built."


def make_plan(facts: ModelFacts, granularity: Granularity) -> Plan:
    """What to generate for one model.

    Raises `VgenError` "no-region" where nothing would be generated.
    """
    chosen = _chosen(facts)
    packages = {package_of(facts, role.ref) for role in facts.roles if package_of(facts, role.ref) != facts.model}
    packages |= {
        package_of(facts, child.target) for fact in facts.classes for child in dispatched(facts, fact) if child.target
    }
    is_auto = granularity is Granularity.AUTO
    layers = {role.ref: by_layer(facts, role.ref) if is_auto else None for role in chosen}
    hazards = _resolve(facts, tuple(each for each in layers.values() if each is not None))
    embeddings = {role.ref: embedding(facts, role.ref, hazards) for role in chosen}
    hazards = resolved(facts, embeddings, hazards)
    regions = once(
        apart(region, embeddings.get(region.ref))
        for role in chosen
        for region in regions_of(facts, role, chosen, hazards, granularity, layers[role.ref])
    )
    rewrites = tuple(dict.fromkeys(rewrite for region in regions for rewrite in rewrites_of(facts, region)))
    carriers = carriers_of(facts, {region.ref for region in regions} | {rewrite.ref for rewrite in rewrites})
    generated = {region.ref for region in regions} | {rewrite.ref for rewrite in rewrites}
    generated |= {carrier.ref for carrier in carriers}
    if not generated:
        raise VgenError("no-region", f"{facts.file} makes no class that could be compiled.", hint=_LIST)
    return Plan(
        model=facts.model,
        file=facts.file,
        granularity=granularity,
        entries=tuple(entry for entry in facts.entries if entry in generated),
        regions=regions,
        carriers=carriers,
        rewrites=rewrites,
        order=tuple(sorted(generated, key=lambda ref: (ref.file == facts.file, ref.file, facts.of(ref).span.line))),
        hazards=tuple(
            dict.fromkeys(
                hazard
                for role in chosen
                for ref in reached(facts, role.ref)
                for hazard in hazards
                if hazard.owner == ref
            )
        ),
        packages=tuple(sorted(packages)),
    )


def _chosen(facts: ModelFacts) -> tuple[RoleFact, ...]:
    """One role fact for each class that this package compiles: the one with the longest way down from an entry, which is
    the way a user's model has it."""
    found: dict[Ref, RoleFact] = {}
    for role in sorted(facts.roles, key=lambda role: (role.role, -len(role.path), role.entry.name)):
        made_elsewhere = package_of(facts, role.ref) != facts.model and (facts.is_local or _is_auto(facts, role))
        if not made_elsewhere:
            found.setdefault(role.ref, role)
    return tuple(
        sorted(found.values(), key=lambda role: (role.role is not Role.ENCODER, facts.of(role.ref).span.line))
    )


def _is_auto(facts: ModelFacts, role: RoleFact) -> bool:
    """Whether the last step of the way is a child made with `AutoModel.from_config`, of whichever class the config asks for."""
    children = [child for fact in facts.classes for child in fact.children]
    return any(
        child.kind is ChildKind.AUTO and child.target == role.ref and child.attribute == role.path[-1]
        for child in children
        if role.path
    )


def _resolve(facts: ModelFacts, choices: tuple[ByLayer, ...]) -> tuple[Hazard, ...]:
    """The hazards, those inside a pattern that is rewritten marked as resolved by that rewrite, and branches that choose between
    layers by what is done there."""
    forwards = [fact.forward for fact in facts.classes if fact.forward is not None]
    places: dict[str, dict[int, str]] = {}
    for forward in forwards:
        for found, rule in (
            (forward.clamps, Rule.BRANCHLESS_CLAMP),
            (forward.packed, Rule.PACKED_ATTENTION),
            (forward.loop, Rule.VALUE_LOOP),
            (forward.experts, Rule.EXPERT_LOOP),
            *((each, Rule.SIZE_LOOP) for each in forward.looping),
        ):
            if found is not None:
                lines = range(found.first_line, found.last_line + 1)
                places.setdefault(found.span.file, {}).update(dict.fromkeys(lines, rule.value))
    for choice in choices:
        for _, span in choice.places:
            places.setdefault(span.file, {})[span.line] = BY_LAYER
    rules = [places.get(hazard.span.file, {}).get(hazard.span.line) for hazard in facts.hazards]
    return tuple(
        hazard if rule is None else dataclasses.replace(hazard, resolved_by=rule)
        for hazard, rule in zip(facts.hazards, rules, strict=True)
    )
