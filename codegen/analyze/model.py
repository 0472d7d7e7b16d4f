"""One model's facts, put together from the answers to the single questions."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from ..decisions import NONE, Decisions
from ..errors import VgenError
from ..facts import (
    ChildKind,
    ClassFact,
    ModelFacts,
    Ref,
    RoleFact,
    Span,
)
from ..source import Source, SourceFile
from . import recorders
from .classes import Classes
from .composition import children, inherited_init, live
from .forward_facts import forward_of
from .hazards import hazards, reachable
from .roles import rivals, roles, unfollowed
from .trees import Trees


def analyze(source: Source, model: str, decisions: Decisions = NONE) -> ModelFacts:
    """The facts of one model of `source`. `decisions` have the last word on the roles.

    Raises `VgenError`: "no-region" where none of its classes has a decoder or an encoder.
    """
    file = source.modeling_file(model)
    classes, trees = Classes(source), Trees(source)
    entries = tuple(entry for each in source.entry_files(model) for entry in _entries(classes, trees, each))
    if not entries and source.local is not None:
        raise VgenError(
            "no-model",
            f"{file.rel} defines no subclass of Transformers' PreTrainedModel with a forward: there is no model in it.",
            span=Span(file=file.rel, line=1),
            hint="Name the file that defines the model.",
        )
    found: dict[RoleFact, None] = {}
    for entry in entries:
        found.update(dict.fromkeys(roles(classes, trees, entry, decisions)))
    _check(model, file, found, decisions)
    found = {role: None for role in found if role.ref.name not in decisions.leave_out}
    if not found and not any(child.kind.by_config for entry in entries for child in children(classes, trees, entry)):
        raise VgenError(
            "no-region",
            f"{file.rel} offers no model with a decoder or an encoder: there is nothing to compile.",
            hint="`vgen list` shows what can be built.",
        )
    playing = {role.ref for role in found}
    reach: dict[Ref, None] = {}
    for ref in (*entries, *(role.ref for role in found)):
        reach.update(dict.fromkeys(reachable(classes, trees, ref)))
    facts = tuple(_class_fact(classes, trees, ref) for ref in reach)
    return ModelFacts(
        model=model,
        file=file.rel,
        entries=entries,
        classes=facts,
        roles=tuple(found),
        hazards=tuple(hazard for fact in facts for hazard in hazards(classes, fact.ref, fact.forward)),
        notes=tuple(
            dict.fromkeys(
                (
                    *(note for entry in entries for note in unfollowed(classes, trees, entry, model)),
                    *(note for entry in entries for note in rivals(classes, trees, entry, model, playing)),
                    *(note for fact in facts for note in stays_upstreams(classes, fact)),
                )
            )
        ),
    )


def _check(model: str, file: SourceFile, found: Iterable[RoleFact], decisions: Decisions) -> None:
    """Raises `VgenError` "settings" where a decision leads to no class."""
    where = f"[tool.vgen.models.{model}]"
    reached = {part for role in found for part in (".".join(role.path), role.ref.name)}
    for key, part in (("decoder", decisions.decoder), *(("encoders", part) for _, part in decisions.encoders)):
        if part is not None and part not in reached:
            raise VgenError(
                "settings",
                f'{key} in {where} of your pyproject.toml is "{part}", but no model of {file.rel} has that part.',
                hint=f"`vgen explain {model}` shows the ways down that there are.",
            )
    for name in decisions.leave_out:
        if name not in {role.ref.name for role in found}:
            raise VgenError(
                "settings",
                f"leave-out in {where} of your pyproject.toml names {name}, but that is no class that would be compiled.",
                hint=f"`vgen explain {model}` shows those that would be.",
            )


def _entries(classes: Classes, trees: Trees, file: SourceFile) -> tuple[Ref, ...]:
    """The model classes that the file offers in `__all__` and that run.

    Abstract bases have no forward; a model that only generates has none either, but it has parts that are models.
    """
    offered = _offered(file)
    refs = [Ref(file=file.rel, name=name) for name in file.definitions if name in offered]
    return tuple(
        ref
        for ref in refs
        if file.definitions[ref.name].is_class
        and classes.is_pretrained(ref)
        and (classes.method(ref, "forward") is not None or _has_models(classes, trees, ref))
    )


def _has_models(classes: Classes, trees: Trees, ref: Ref) -> bool:
    made = children(classes, trees, ref)
    return any(child.target is not None and child.attribute and classes.is_pretrained(child.target) for child in made)


def _offered(file: SourceFile) -> set[str]:
    for node in file.tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Tuple):
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
                return {str(element.value) for element in node.value.elts if isinstance(element, ast.Constant)}
    return set(file.definitions)


def _class_fact(classes: Classes, trees: Trees, ref: Ref) -> ClassFact:
    init = classes.method(ref, "__init__")
    return ClassFact(
        ref=ref,
        bases=tuple(base.name for base in classes.bases(ref)),
        mro=classes.mro(ref),
        is_pretrained=classes.is_pretrained(ref),
        init=init[0] if init is not None else None,
        inherits_init=inherited_init(classes, ref),
        children=children(classes, trees, ref),
        forward=forward_of(classes, trees, ref),
        span=classes.source.span(ref),
        recorders=recorders.of_class(classes, ref),
    )


def stays_upstreams(classes: Classes, fact: ClassFact) -> tuple[tuple[Span, str], ...]:
    """The parts of a class that a build leaves as they are, with their places."""
    found = []
    if fact.init is not None:
        for name, line in live(classes, fact.ref):
            text = f"{fact.ref.name}.{name} may be a model that the caller made: such a one stays as it is"
            found.append((Span(file=fact.init.file, line=line), text))
    for child in fact.children:
        if child.kind is ChildKind.FACTORY and child.target is not None:
            text = f"{child.callee}() makes {child.target.name}, which stays upstream's"
            found.append((child.span, text))
        elif child.kind is ChildKind.BACKBONE:
            text = f"{child.callee}({child.config}) makes the backbone's generated class where it is built, else upstream's"
            found.append((child.span, text))
    return tuple(found)
