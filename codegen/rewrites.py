"""Which rules are applied to which methods in a region."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import Forward, ModelFacts, PackedSplit, Pattern, Ref, Role
from .plan import Region, Rewrite, Rule
from .reach import package_of, reached


def rewrites_of(facts: ModelFacts, region: Region) -> tuple[Rewrite, ...]:
    """What is rewritten in the class of a region and in those of the modules inside it."""
    found: list[Rewrite] = []
    for ref in reached(facts, region.ref):
        forward = facts.of(ref).forward
        changed = _of_class(region, ref, forward) if forward is not None else []
        taken = {each.method for each in changed}
        found += (*changed, *(each for each in _nested_recorders(facts, region, ref) if each.method not in taken))
    return tuple(found)


def _of_class(region: Region, ref: Ref, forward: Forward) -> list[Rewrite]:
    """What is rewritten in the class of a region, or of a module inside it, that has this forward."""
    found: list[Rewrite] = []
    if forward.loop is not None:
        found.append(_rewrite(ref, Rule.VALUE_LOOP, forward.loop))
    if forward.experts is not None:
        found.append(_rewrite(ref, Rule.EXPERT_LOOP, forward.experts))
    found += [_rewrite(ref, Rule.SIZE_DIVISION, each) for each in forward.divisions]
    if forward.sizes is not None and ref != region.ref and not _is_rewritten(forward):
        # A region's own forward is what the region calls.
        found += [_rewrite(ref, Rule.SIZE_BUFFER, each) for each in forward.sizes.methods]
    elif forward.asked is not None and ref != region.ref and not _is_rewritten(forward):
        found.append(_rewrite(ref, Rule.KNOWN_TRUTH, forward.asked))
    elif not _is_rewritten(forward):
        own = "forward" if ref == region.ref else ""
        found += [_rewrite(ref, Rule.SIZE_LOOP, each) for each in forward.size_loops if each.method != own]
    if forward.packed is not None:
        found.append(_rewrite(ref, Rule.PACKED_ATTENTION, forward.packed))
    elif forward.grouped is not None and region.role is not Role.ENCODER:
        # One token at a time is what decoders are given.
        place = forward.grouped.span
        found.append(
            Rewrite(
                ref=ref,
                rule=Rule.GROUPED_ATTENTION,
                method=forward.grouped.method,
                first_line=place.line,
                last_line=place.line,
                span=place,
            )
        )
    elif forward.clamps is not None and not (ref == region.ref and (forward.prologue or region.embedding)):
        # What is computed before a region is handed to upstream's own forward.
        found.append(_rewrite(ref, Rule.BRANCHLESS_CLAMP, forward.clamps))
    # One method, one rule; and a region's own forward is what the region calls.
    taken = {each.method for each in found} | ({"forward"} if ref == region.ref else set())
    late = [_rewrite(ref, Rule.LATE_MESSAGE, each) for each in forward.messages if each.method not in taken]
    taken |= {each.method for each in late}
    ranges = (_rewrite(ref, Rule.SIZE_RANGE, each) for each in forward.ranges if each.method not in taken)
    found += (*late, *ranges)
    return found


def _nested_recorders(facts: ModelFacts, region: Region, ref: Ref) -> Iterator[Rewrite]:
    """The methods of a class inside a region that record, where the region's forward does as well."""
    around = facts.of(region.ref).recorders
    if (
        ref == region.ref
        or package_of(facts, ref) != facts.model
        or not any(each.method == "forward" for each in around)
    ):
        return
    for each in facts.of(ref).recorders:
        yield _rewrite(ref, Rule.NESTED_RECORDER, each)


def _is_rewritten(forward: Forward) -> bool:
    """Whether another rule has changed a method of the class: one method, one rule."""
    others = (forward.loop, forward.experts, forward.packed, forward.grouped, forward.clamps)
    return bool(forward.divisions) or any(each is not None for each in others)


def _rewrite(ref: Ref, rule: Rule, found: Pattern | PackedSplit) -> Rewrite:
    return Rewrite(
        ref=ref,
        rule=rule,
        method=found.method,
        first_line=found.first_line,
        last_line=found.last_line,
        span=found.span,
    )
