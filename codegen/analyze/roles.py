"""Which class is the decoder, which are the encoders: Transformers' `get_decoder` and `get_encoder`, applied to the source.

The rules are those of `PreTrainedModel` in modeling_utils.py: the first attribute of a fixed list that the object has, else
the same question to the base model, else the object itself. A class that overrides them with `return self.a.b` is followed.
A model in which that finds nothing but itself is one encoder as a whole.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..decisions import NONE, Decisions
from ..facts import Modality, Ref, Role, RoleFact, Span
from .classes import Classes
from .composition import assigned, children, live
from .kinds import CACHES
from .trees import Trees

DECODERS = ("language_model", "text_model", "decoder", "text_decoder")
ENCODERS = {
    Modality.IMAGE: ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower"),
    Modality.AUDIO: ("audio_tower", "audio_encoder", "speech_encoder"),
    Modality.TEXT: ("text_encoder", "encoder"),
}
INPUTS = {
    Modality.IMAGE: ("pixel_values", "pixel_values_videos", "pixel_values_images"),
    Modality.AUDIO: ("input_features", "input_values", "audio_values"),
    Modality.TEXT: ("input_ids", "inputs_embeds"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where a search ended: the class, the attributes on the way, and the rule that chose the last step."""

    ref: Ref
    path: tuple[str, ...]
    rule: str


def roles(classes: Classes, trees: Trees, entry: Ref, decisions: Decisions = NONE) -> tuple[RoleFact, ...]:
    """The roles that classes play for one entry; what the user decides comes first."""
    search = _Search(classes, trees)
    found: list[RoleFact] = []

    def add(role: Role, modality: Modality, part: Found) -> None:
        if part.ref not in {fact.ref for fact in found} and classes.method(part.ref, "forward") is not None:
            found.append(_fact(classes, role, modality, entry, part))

    decided = search.decided(entry, decisions.decoder)
    if decided is not None:
        add(Role.EITHER if _asks_is_decoder(classes, decided.ref) else Role.DECODER, Modality.TEXT, decided)
    for name, way in decisions.encoders:
        part = search.decided(entry, way)
        if part is not None:
            add(Role.ENCODER, Modality(name), part)
    # A model without the part that is decided on has its own.
    decoder = search.decoder(entry) if decided is None else None
    if decoder is not None:
        decoder = search.without_head(entry, decoder)
    if decoder is not None and live(classes, decoder.ref):
        decoder = None  # It is put together from models that play the roles themselves.
    if decoder is not None and _takes_cache(classes, decoder.ref):
        add(Role.EITHER if _asks_is_decoder(classes, decoder.ref) else Role.DECODER, Modality.TEXT, decoder)
    elif decoder is not None and decoder.path and classes.is_pretrained(decoder.ref):
        # A text tower that keeps no cache encodes.
        modality = _modality(classes, decoder.ref)
        if modality is Modality.TEXT:
            add(Role.ENCODER, modality, decoder)
    for modality in ENCODERS:
        if modality.value in dict(decisions.encoders):
            continue
        encoder = search.encoder(entry, modality)
        if encoder is not None and encoder.path and classes.is_pretrained(encoder.ref):
            # The name `encoder` doesn't say what it encodes: what it reads does, else what the model reads.
            read = _reads(classes, encoder.ref) or _modality(classes, entry)
            add(Role.ENCODER, read if modality is Modality.TEXT else modality, encoder)
    if not found:
        whole = search.base(entry)
        if classes.is_pretrained(whole.ref) and not live(classes, whole.ref) and not search.hides_base(whole.ref):
            add(Role.ENCODER, _modality(classes, whole.ref), whole)
    return tuple(found)


def unfollowed(classes: Classes, trees: Trees, entry: Ref, model: str) -> tuple[tuple[Span, str], ...]:
    """The overrides of `get_decoder` and `get_encoder` of one entry that can't be read off the source, with their places."""
    search = _Search(classes, trees)
    found = []
    for name, key in (("get_decoder", 'decoder = "…"'), ("get_encoder", 'encoders = { image = "…" }')):
        method = classes.method(entry, name)
        if method is not None and search.overridden(entry, name) is None:
            span = Span(file=method[0].file, line=method[1].lineno)
            found.append(
                (
                    span,
                    f"{name}() is overridden in a way that can't be followed: Transformers' own order is used. Another "
                    f"part is named by `{key}` in [tool.vgen.models.{model}] of pyproject.toml",
                )
            )
    return tuple(found)


def rivals(
    classes: Classes, trees: Trees, entry: Ref, model: str, playing: Collection[Ref]
) -> tuple[tuple[Span, str], ...]:
    """Where an entry has several parts that could be its decoder and not all of them are compiled: which these are.

    `playing` are the classes that play a role in the package.
    """
    if entry in playing:
        return ()
    parts = dict(_decoders(classes, trees, entry, (), playing))
    left = [ref for ref in parts if ref not in playing]
    if len(parts) < 2 or not left:
        return ()
    named = ", ".join(f"{'.'.join(path)} ({ref.name})" for ref, path in parts.items())
    text = (
        f"{entry.name} has several parts that could be its decoder: {named}. Not compiled: "
        f'{", ".join(ref.name for ref in left)}; `decoder = "{".".join(parts[left[0]])}"` in [tool.vgen.models.{model}] of '
        f"pyproject.toml takes that one instead"
    )
    return ((classes.source.span(entry), text),)


def _decoders(
    classes: Classes,
    trees: Trees,
    ref: Ref,
    path: tuple[str, ...],
    playing: Collection[Ref],
    seen: frozenset[Ref] = frozenset(),
) -> Iterator[tuple[Ref, tuple[str, ...]]]:
    """The models below a model that keep a cache and hold no other one that does, and the way down to each. What plays a role is
    one part, whatever it holds."""
    for child in children(classes, trees, ref):
        target = child.target
        if target is None or target in seen or child.repeated or not child.attribute:
            continue
        if child.kind.by_config or _folder(target) != _folder(ref):
            continue  # What is another model's, its own package compiles.
        way = (*path, child.attribute)
        below = [] if target in playing else list(_decoders(classes, trees, target, way, playing, seen | {ref}))
        if below:
            yield from below
        elif classes.is_pretrained(target) and _takes_cache(classes, target) and not live(classes, target):
            yield target, way


def _fact(classes: Classes, role: Role, modality: Modality, entry: Ref, found: Found) -> RoleFact:
    return RoleFact(
        role=role,
        modality=modality,
        ref=found.ref,
        entry=entry,
        path=found.path,
        reason=f"{'.'.join([entry.name, *found.path])}: {found.rule}",
        span=classes.source.span(found.ref),
    )


def _parameters(classes: Classes, ref: Ref) -> tuple[str, ...]:
    method = classes.method(ref, "forward")
    if method is None:
        return ()
    arguments = method[1].args
    return tuple(argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))[1:]


def _takes_cache(classes: Classes, ref: Ref) -> bool:
    """A decoder's forward keeps what it has seen: it takes a cache of key and value states, or of a recurrent state."""
    return not CACHES.isdisjoint(_parameters(classes, ref))


def _generates(classes: Classes, ref: Ref) -> bool:
    """Whether a model has what it takes to generate, and so a language-modeling head."""
    return any(each.name == "GenerationMixin" for each in classes.mro(ref))


def _folder(ref: Ref) -> str:
    return ref.file.rpartition("/")[0]


def _asks_is_decoder(classes: Classes, ref: Ref) -> bool:
    """Whether the class is an encoder or a decoder by its config: its `__init__` or forward reads `is_decoder`."""
    for name in ("__init__", "forward"):
        method = classes.method(ref, name)
        for node in ast.walk(method[1]) if method is not None else ():
            if isinstance(node, ast.Attribute) and node.attr == "is_decoder":
                return True
    return False


def _modality(classes: Classes, ref: Ref) -> Modality:
    """What a model reads; text where its inputs don't say it."""
    return _reads(classes, ref) or Modality.TEXT


def _reads(classes: Classes, ref: Ref) -> Modality | None:
    """What a model reads: by `main_input_name`, else by the parameters of its forward. None for hidden states."""
    main = classes.text_attribute(ref, "main_input_name")
    names = (main,) if main is not None else _parameters(classes, ref)
    for modality, inputs in INPUTS.items():
        if any(name in inputs for name in names):
            return modality
    return None


class _Search:
    def __init__(self, classes: Classes, trees: Trees) -> None:
        self.classes = classes
        self.trees = trees

    def decided(self, ref: Ref, way: str | None) -> Found | None:
        """The part that the user names: by the attributes from `ref` down to it, or by its class where that is below `ref`."""
        rule = "decided in pyproject.toml"
        if way is None:
            return None
        here: Ref | None = ref
        for attribute in way.split("."):
            here = self._target(here, attribute) if here is not None else None
        if here is not None:
            return Found(ref=here, path=tuple(way.split(".")), rule=rule)
        pending: list[tuple[Ref, tuple[str, ...]]] = [(ref, ())]
        seen: set[Ref] = set()
        while pending:
            at, path = pending.pop(0)
            if at.name == way:
                return Found(ref=at, path=path, rule=rule)
            if at in seen:
                continue
            seen.add(at)
            made = children(self.classes, self.trees, at)
            pending += [(child.target, (*path, child.attribute)) for child in made if child.target is not None]
        return None

    def decoder(self, ref: Ref) -> Found | None:
        return self.overridden(ref, "get_decoder") or self._decoder(ref)

    def _decoder(self, ref: Ref) -> Found | None:
        names = assigned(self.classes, ref)
        for name in DECODERS:
            if name in names:
                return self._step(ref, name, f"get_decoder() looks for `{name}` first of {', '.join(DECODERS)}")
        base = self._base_model(ref)
        if base is not None:
            return self._below(base, self.decoder(base.ref))
        if self.hides_base(ref):
            return None
        return Found(ref=ref, path=(), rule="get_decoder() finds no part and returns the model itself")

    def without_head(self, entry: Ref, found: Found) -> Found:
        """The base model below a part that has a language-modeling head: Transformers' rules may end at `XForCausalLM`, whose head
        isn't compiled. A part of another model is left to that model's package."""
        while _folder(found.ref) == _folder(entry) and _generates(self.classes, found.ref):
            below = [
                child
                for child in children(self.classes, self.trees, found.ref)
                if child.target is not None
                and child.attribute
                and not (child.repeated or child.kind.by_config)
                and self.classes.is_pretrained(child.target)
                and _takes_cache(self.classes, child.target)
                and not _generates(self.classes, child.target)
            ]
            if len({child.target for child in below}) != 1 or below[0].target is None:
                break
            rule = f"{found.rule}; {found.ref.name} is it with a head, which isn't compiled"
            found = Found(ref=below[0].target, path=(*found.path, below[0].attribute), rule=rule)
        return found

    def hides_base(self, ref: Ref) -> bool:
        """Whether the model has a base model that the source doesn't fix: what else it has isn't the decoder then. Transformers'
        auto classes don't know a model that isn't theirs."""
        prefix = self.classes.text_attribute(ref, "base_model_prefix")
        made = children(self.classes, self.trees, ref) if self.classes.source.local is not None else ()
        return any(child.attribute == prefix and child.target is None for child in made)

    def encoder(self, ref: Ref, modality: Modality) -> Found | None:
        return self.overridden(ref, "get_encoder") or self._encoder(ref, modality)

    def _encoder(self, ref: Ref, modality: Modality) -> Found | None:
        names = assigned(self.classes, ref)
        asked = "" if modality is Modality.TEXT else repr(modality.value)
        for name in ENCODERS[modality]:
            if name in names:
                rule = f"get_encoder({asked}) looks for `{name}` among {', '.join(ENCODERS[modality])}"
                return self._step(ref, name, rule)
        base = self._base_model(ref)
        if base is not None:
            found = self.encoder(base.ref, modality)
            if found is not None and found.path:
                return self._below(base, found)
        return Found(ref=ref, path=(), rule="get_encoder() finds no part and returns the model itself")

    def base(self, ref: Ref) -> Found:
        """The base model, or the model itself where it has none below it."""
        base = self._base_model(ref)
        if base is None:
            return Found(ref=ref, path=(), rule="it has no decoder and no encoder of its own, so it is one as a whole")
        below = self.base(base.ref)
        return Found(ref=below.ref, path=base.path + below.path, rule=below.rule)

    def _below(self, base: Found, found: Found | None) -> Found | None:
        return None if found is None else Found(ref=found.ref, path=base.path + found.path, rule=found.rule)

    def _target(self, ref: Ref, attribute: str) -> Ref | None:
        for child in children(self.classes, self.trees, ref):
            if child.attribute == attribute and not child.repeated:
                return child.target
        return None

    def _step(self, ref: Ref, attribute: str, rule: str) -> Found | None:
        target = self._target(ref, attribute)
        return None if target is None else Found(ref=target, path=(attribute,), rule=rule)

    def _base_model(self, ref: Ref) -> Found | None:
        """`base_model`: the attribute that `base_model_prefix` names, None where it is the object itself."""
        prefix = self.classes.text_attribute(ref, "base_model_prefix")
        return self._step(ref, prefix, "base_model") if prefix else None

    def overridden(self, ref: Ref, method: str) -> Found | None:
        """The part that an override returns, for the form `return self.a.b` or `return self.a.get_decoder()`."""
        found = self.classes.method(ref, method)
        returns = [node for node in ast.walk(found[1]) if isinstance(node, ast.Return)] if found else []
        if len(returns) != 1 or returns[0].value is None:
            return None
        value, again = returns[0].value, False
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == method:
            value, again = value.func.value, True
        path: list[str] = []
        while isinstance(value, ast.Attribute):
            path.insert(0, value.attr)
            value = value.value
        if not (isinstance(value, ast.Name) and value.id == "self"):
            return None
        here: Ref | None = ref
        for attribute in path:
            here = self._target(here, attribute) if here is not None else None
        if here is None:
            return None
        rule = f"{ref.name} overrides {method}()"
        end = self.decoder(here) if again and method == "get_decoder" else Found(ref=here, path=(), rule=rule)
        return None if end is None else Found(ref=end.ref, path=(*path, *end.path), rule=rule)
