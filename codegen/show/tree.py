"""`vgen explain`: facts and plan as a tree. Every line that comes from the source says where it stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from ..facts import ArgumentShape, Hazard, PrologueCall, Ref, Span
from ..plan import Carrier, Granularity, Region
from ..reach import reached
from .rows import describe_rewrite, granularity_words, reach

if TYPE_CHECKING:
    from ..build import Package


def package_tree(package: Package) -> Tree:
    """The whole explanation of one model."""
    facts, plan = package.facts, package.plan
    tree = Tree(_line((package.model, "bold"), f"  {plan.file.removeprefix('.')}"), guide_style="dim")
    entries = _branch(tree, "entries", f"what a user loads ({len(plan.entries)})")
    for ref in plan.entries:
        fact = facts.find(ref)
        entries.add(_at(ref.name, fact.span if fact else None))
    regions = _branch(tree, "regions", f"what is compiled ({len(plan.regions)})")
    for region in plan.regions:
        _region(regions, region, package)
    if plan.carriers:
        carriers = _branch(tree, "carriers", f"what makes generated children ({len(plan.carriers)})")
        for carrier in plan.carriers:
            _carrier(carriers, carrier, plan.order)
    if plan.rewrites:
        rewrites = _branch(tree, "rewrites", f"({len(plan.rewrites)})")
        for rewrite in plan.rewrites:
            lines = f"lines {rewrite.first_line}-{rewrite.last_line}"
            rewrites.add(_at(f"{rewrite.rule}: {rewrite.ref.name}.{rewrite.method}, {lines}", rewrite.span))
    if plan.hazards:
        unresolved = len(plan.unresolved)
        hazards = _branch(tree, "hazards", f"({len(plan.hazards)}, {unresolved} unresolved)")
        for hazard in plan.hazards:
            hazards.add(_hazard(hazard))
    if plan.packages:
        packages = _branch(tree, "packages", "that its AutoModel children use where they are built")
        for name in plan.packages:
            packages.add(_line(name))
    if facts.notes:
        notes = _branch(tree, "notes", "")
        for span, note in facts.notes:
            notes.add(_at(note, span))
    return tree


def _region(parent: Tree, region: Region, package: Package) -> None:
    facts, plan = package.facts, package.plan
    branch = parent.add(_line((region.tag, "bold cyan"), f"  {region.ref.name}", _place(region.span)))
    words = granularity_words(region.granularity)
    is_block = region.granularity is Granularity.BLOCK
    roles = [
        role
        for role in facts.roles
        if role.role is region.role
        and (role.ref == region.ref or (is_block and region.ref in reached(facts, role.ref)))
    ]
    told = any(role.reason == region.reason for role in roles)
    branch.add(
        _line(
            f"{region.modality.value} {region.role.value}, {region.cut} ({words}){'' if told else f': {region.reason}'}"
        )
    )
    if roles:
        found = _branch(branch, "found", "as the part that plays this role")
        for role in roles:
            found.add(_at(role.reason, role.span))
    if region.by_layer is not None:
        layers = _branch(branch, "by layer", f"in upstream's own forward where {region.by_layer.condition}")
        for owner, span in region.by_layer.places:
            layers.add(_at(f"{owner.name} leaves out layers at random", span))
    contract = _branch(branch, "contract", "")
    for shape in region.contract:
        _argument(contract, shape, dropped=shape.name in region.dropped)
    if region.embedding is not None:
        block = region.embedding
        branch.add(_at(f"self.{', self.'.join(block.parts)} make {block.target} before the region", block.place.span))
    if region.hoisted:
        hoisted = _branch(branch, "hoisted", "run before the region, since they depend on values")
        for call in region.hoisted:
            _call(hoisted, call)
    if region.dropped:
        branch.add(_line(("dropped  ", "bold"), f"{', '.join(region.dropped)}: only the prologue reads it"))
    within = reach(region, facts, plan)
    rewrites = [describe_rewrite(rewrite) for rewrite in plan.rewrites if rewrite.ref in within]
    if rewrites:
        branch.add(_line(("rewrites  ", "bold"), ", ".join(rewrites)))
    traits = [
        words
        for present, words in (
            (region.packed_attention, "packed attention"),
            (region.rotary, "rotary embedding from the config"),
            (region.records_outputs, "can record hidden states and attentions"),
        )
        if present
    ]
    if traits:
        branch.add(_line(("has  ", "bold"), ", ".join(traits)))
    hazards = [hazard for hazard in plan.unresolved if hazard.owner in within]
    if hazards:
        unresolved = _branch(branch, "unresolved hazards", "")
        for hazard in hazards:
            unresolved.add(_hazard(hazard))


def _argument(parent: Tree, shape: ArgumentShape, *, dropped: bool) -> None:
    branch = parent.add(_line((shape.name, "bold"), f"  {_shape(shape)}", "  (never goes in)" if dropped else ""))
    for evidence in shape.evidence:
        quoted = " ".join(evidence.text.split())
        branch.add(_line(f"{evidence.source.value}: {quoted}", _place(evidence.span)))
    if shape.disagreement:
        branch.add(_line((f"disagreement: {shape.disagreement}", "yellow")))


def _shape(shape: ArgumentShape) -> str:
    if shape.is_python_int:
        return "a Python int that may change from call to call"
    names = ", ".join("fixed" if dim is None else str(dim) for dim in shape.dims or ())
    dims = f"({names}{',' if shape.dims and len(shape.dims) == 1 else ''})"
    if shape.is_tuple:
        said = f"each {dims} by its documentation" if shape.dims is not None else "no evidence of their shapes"
        return f"tensors, {said}: every dimension may change"
    if not shape.is_tensor:
        return "unannotated, and nothing says what it is: if it is a tensor, every dimension may change"
    if shape.dims is not None:
        return f"a tensor {dims}"
    return f"a tensor, {'' if shape.disagreement else 'no evidence of its shape: '}every dimension may change"


def _call(parent: Tree, call: PrologueCall) -> None:
    branch = parent.add(_line(f"{', '.join(call.targets)} = {call.helper.name}(…)", _place(call.span)))
    keys = ", ".join(f"kwargs[{key!r}]" for key in call.keys)
    branch.add(_line(f"which takes {keys} instead of computing", _place(call.helper_span)))


def _carrier(parent: Tree, carrier: Carrier, order: Iterable[Ref]) -> None:
    branch = parent.add(_line((carrier.ref.name, "bold"), _place(carrier.span), f"  {carrier.reason}"))
    if carrier.methods:
        branch.add(_line(f"it makes children in {', '.join(f'{name}()' for _, name in carrier.methods)} too"))
    if carrier.init is not None and carrier.init != carrier.ref:
        branch.add(_line(f"its __init__ is that of {carrier.init.name}"))
    if carrier.base is not None:
        branch.add(_line(f"which runs that of {carrier.base.name} through super()"))
    generated = set(order)
    for child in carrier.exchanged:
        target = child.target.name if child.target else "what its config says"
        made = "exchanged" if child.target in generated else "made by the runtime's dispatcher"
        many = ", repeated" if child.repeated else ""
        many += ", conditional" if child.conditional else ""
        what = f"self.{child.attribute} = " if child.attribute else ""
        many += f", in {child.method}()" if child.method != "__init__" else ""
        branch.add(_at(f"{what}{child.callee}(…): {target}, {made}{many}", child.span))


def _hazard(hazard: Hazard) -> Text:
    state = f"resolved by {hazard.resolved_by}" if hazard.resolved_by else "unresolved"
    style = "" if hazard.resolved_by else "yellow"
    return _line(
        (f"{hazard.kind.value}: {hazard.message}, in {hazard.owner.name}; {state}", style), _place(hazard.span)
    )


def _branch(parent: Tree, name: str, detail: str) -> Tree:
    return parent.add(_line((name, "bold"), f"  {detail}" if detail else ""))


def _at(text: str, span: Span | None) -> Text:
    return _line(text, _place(span) if span else "")


def _place(span: Span) -> tuple[str, str]:
    return f"  {span}", "dim"


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts)
