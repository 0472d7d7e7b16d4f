"""What changed in the facts: classes, their forwards and children, and the helpers that can be hoisted."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Child, ClassFact, Forward, ModelFacts, Parameter, ParameterKind, PrologueCall, Ref
from ..plan import Plan
from .change import Change, Effect, Kind, Thing, changed, compared
from .identity import Identity


def fact_changes(old: tuple[ModelFacts, Plan], new: tuple[ModelFacts, Plan], identity: Identity) -> Iterator[Change]:
    """Changes of the entries and of the model's own classes; other models' classes are told where their model is."""
    yield from compared(Kind.ENTRY, _entries(old[0], identity), _entries(new[0]))
    before, after = _own(*old), _own(*new)
    for ref, fact in before.items():
        now = after.get(identity.now(ref))
        if now is None:
            if identity.now(ref) not in {each.ref for each in new[0].classes}:
                yield Change(kind=Kind.CLASS, effect=Effect.WENT, subject=ref.name, old=fact.span)
        else:
            yield from _class_changes(fact, now, identity)
    known = {identity.now(each.ref) for each in old[0].classes}
    for ref, fact in after.items():
        if ref not in known:
            yield Change(kind=Kind.CLASS, effect=Effect.CAME, subject=ref.name, new=fact.span)


def _entries(facts: ModelFacts, identity: Identity | None = None) -> dict[object, Thing]:
    found: dict[object, Thing] = {}
    for ref in facts.entries:
        fact = facts.find(ref)
        key = identity.now(ref) if identity is not None else ref
        found[key] = Thing(subject=ref.name, span=fact.span if fact is not None else None)
    return found


def _own(facts: ModelFacts, plan: Plan) -> dict[Ref, ClassFact]:
    """The classes of the model's folder, and those of other folders that its package subclasses."""
    folder, generated = facts.file.rpartition("/")[0], set(plan.order)
    return {
        fact.ref: fact for fact in facts.classes if fact.ref.file.rpartition("/")[0] == folder or fact.ref in generated
    }


def _class_changes(old: ClassFact, new: ClassFact, identity: Identity) -> Iterator[Change]:
    if old.ref.name != new.ref.name:
        before = Thing(subject=new.ref.name, text=old.ref.name, span=old.span)
        after = Thing(subject=new.ref.name, text=new.ref.name, span=new.span)
        yield changed(Kind.CLASS, old.ref.name, before, after, Effect.RENAMED)
    elif old.ref.file != new.ref.file:
        before = Thing(subject=new.ref.name, text=old.ref.file, span=old.span)
        after = Thing(subject=new.ref.name, text=new.ref.file, span=new.span)
        yield changed(Kind.CLASS, new.ref.name, before, after, Effect.MOVED)
    renamed = {before.name: now.name for before, now in identity.pairs.items()}
    bases = tuple(renamed.get(name, name) for name in old.bases)
    if bases != new.bases:
        before = Thing(subject=new.ref.name, text=f"bases {_names(bases)}", span=old.span)
        after = Thing(subject=new.ref.name, text=f"bases {_names(new.bases)}", span=new.span)
        yield changed(Kind.CLASS, new.ref.name, before, after)
    yield from compared(Kind.CHILD, _children(old, new.ref.name, identity), _children(new, new.ref.name))
    yield from _forward_changes(old, new)


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none of Transformers'"


def _children(fact: ClassFact, owner: str, identity: Identity | None = None) -> dict[object, Thing]:
    """By attribute, and by number among those of one attribute: conditional children share it."""
    found: dict[object, Thing] = {}
    for child in fact.children:
        number = sum(1 for key in found if isinstance(key, tuple) and key[0] == child.attribute)
        text = _made(child, identity)
        found[child.attribute, number] = Thing(subject=f"{owner}.{child.attribute}", text=text, span=child.span)
    return found


def _made(child: Child, identity: Identity | None) -> str:
    target = identity.name(child.target) if identity is not None else child.target and child.target.name
    how = child.callee if target is None or child.callee == target else f"{child.callee}: {target}"
    # The callee of a renamed class is renamed as well, and that is told once, for the class.
    if identity is not None and child.target is not None and child.callee == child.target.name:
        how = str(target)
    return how + (", repeated" if child.repeated else "") + (", conditional" if child.conditional else "")


def _forward_changes(old: ClassFact, new: ClassFact) -> Iterator[Change]:
    if old.forward is None or new.forward is None:
        yield from compared(Kind.FORWARD, _forward(old, new.ref.name), _forward(new, new.ref.name))
        return
    # Told for the class that defines it: one that several inherit is then told once.
    owner = new.forward.owner.name
    before, after = _parameters(old.forward, owner), _parameters(new.forward, owner)
    yield from compared(Kind.PARAMETER, before, after)
    common = [name for name in before if name in after]
    reordered = [name for name in after if name in before]
    if common != reordered:
        yield changed(
            Kind.FORWARD,
            f"{owner}.forward",
            Thing(subject=owner, text=f"order {', '.join(map(str, common))}", span=old.forward.span),
            Thing(subject=owner, text=f"order {', '.join(map(str, reordered))}", span=new.forward.span),
        )
    yield from compared(Kind.FORWARD, _traits(old.forward, owner), _traits(new.forward, owner))
    yield from compared(Kind.HELPER, _helpers(old.forward, owner), _helpers(new.forward, owner))


def _forward(fact: ClassFact, owner: str) -> dict[str, Thing]:
    return {"forward": Thing(subject=f"{owner}.forward", span=fact.forward.span)} if fact.forward is not None else {}


def _parameters(forward: Forward, owner: str) -> dict[object, Thing]:
    return {
        each.name: Thing(subject=f"{owner}.forward({each.name})", text=_parameter(each), span=forward.span)
        for each in forward.parameters
    }


def _parameter(each: Parameter) -> str:
    """As in the source, without the name: `torch.Tensor | None = None`."""
    annotation = each.annotation or "no annotation"
    default = f" = {each.default}" if each.default is not None else ""
    kind = "" if each.kind is ParameterKind.POSITIONAL else f", {each.kind.value}"
    return f"{annotation}{default}{kind}"


def _traits(forward: Forward, owner: str) -> dict[object, Thing]:
    found: dict[object, Thing] = {
        "->": Thing(subject=f"{owner}.forward", text=f"-> {forward.returns or 'no annotation'}", span=forward.span)
    }
    for decorator in forward.decorators:
        found[decorator] = Thing(subject=f"{owner}.forward @{decorator}", span=forward.span)
    return found


def _helpers(forward: Forward, owner: str) -> dict[object, Thing]:
    found: dict[object, Thing] = {}
    for call in forward.prologue:
        subject = f"{call.helper.name} in {owner}.forward"
        found[call.helper.name, len(_same(found, call))] = Thing(subject=subject, text=_takes(call), span=call.span)
    return found


def _same(found: dict[object, Thing], call: PrologueCall) -> list[object]:
    return [key for key in found if isinstance(key, tuple) and key[0] == call.helper.name]


def _takes(call: PrologueCall) -> str:
    return f"takes {', '.join(call.keys)}"
