"""Which class is the decoder, which are the encoders: Transformers' `get_decoder` and `get_encoder`, applied to the source.

The rules are those of `PreTrainedModel` in modeling_utils.py: the first attribute of a fixed list that the object has, else
the same question to the base model, else the object itself. A class that overrides them with `return self.a.b` is followed.
A model in which that finds nothing but itself is one encoder as a whole.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ..facts import Modality, Ref, Role, RoleFact, Span
from .classes import Classes
from .composition import assigned, children
from .trees import Trees

DECODERS = ("language_model", "text_model", "decoder", "text_decoder")
ENCODERS = {
    Modality.IMAGE: ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower"),
    Modality.AUDIO: ("audio_tower", "audio_encoder", "speech_encoder"),
    Modality.TEXT: ("text_encoder", "encoder"),
}
CACHES = {"past_key_values", "cache_params", "past_key_value"}
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


def roles(classes: Classes, trees: Trees, entry: Ref) -> tuple[RoleFact, ...]:
    """The roles that classes play for one entry."""
    search = _Search(classes, trees)
    found: list[RoleFact] = []

    def add(role: Role, modality: Modality, part: Found) -> None:
        if part.ref not in {fact.ref for fact in found}:
            found.append(_fact(classes, role, modality, entry, part))

    decoder = search.decoder(entry)
    if decoder is not None and _takes_cache(classes, decoder.ref):
        add(Role.EITHER if _asks_is_decoder(classes, decoder.ref) else Role.DECODER, Modality.TEXT, decoder)
    elif decoder is not None and decoder.path and classes.is_pretrained(decoder.ref):
        # A text tower that keeps no cache encodes.
        modality = _modality(classes, decoder.ref)
        if modality is Modality.TEXT:
            add(Role.ENCODER, modality, decoder)
    for modality in ENCODERS:
        encoder = search.encoder(entry, modality)
        if encoder is not None and encoder.path and classes.is_pretrained(encoder.ref):
            # The name `encoder` doesn't say what it encodes: what it reads does, else what the model reads.
            read = _reads(classes, encoder.ref) or _modality(classes, entry)
            add(Role.ENCODER, read if modality is Modality.TEXT else modality, encoder)
    if not found:
        whole = search.base(entry)
        if classes.is_pretrained(whole.ref):
            add(Role.ENCODER, _modality(classes, whole.ref), whole)
    return tuple(found)


def unfollowed(classes: Classes, trees: Trees, entry: Ref) -> tuple[tuple[Span, str], ...]:
    """The overrides of `get_decoder` and `get_encoder` of one entry that can't be read off the source, with their places."""
    search = _Search(classes, trees)
    found = []
    for name in ("get_decoder", "get_encoder"):
        method = classes.method(entry, name)
        if method is not None and search.overridden(entry, name) is None:
            span = Span(file=method[0].file, line=method[1].lineno)
            found.append(
                (span, f"{name}() is overridden in a way that can't be followed: Transformers' own order is used")
            )
    return tuple(found)


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
    return bool(CACHES & set(_parameters(classes, ref)))


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
        return Found(ref=ref, path=(), rule="get_decoder() finds no part and returns the model itself")

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
