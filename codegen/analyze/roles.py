"""Which class is the decoder, which are the encoders: Transformers' `get_decoder` and `get_encoder`, applied to the source.

The rules are those of `PreTrainedModel` in modeling_utils.py: the first attribute of a fixed list that the object has, else
the same question to the base model, else the object itself. A class that overrides them with `return self.a.b` is followed.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ..facts import Ref, Role, RoleFact
from .classes import Classes
from .composition import children
from .trees import Trees

DECODERS = ("language_model", "text_model", "decoder", "text_decoder")
ENCODERS = {
    "image": ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower"),
    "audio": ("audio_tower", "audio_encoder", "speech_encoder"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where a search ended: the class, the attributes on the way, and the rule that chose the last step."""

    ref: Ref
    path: tuple[str, ...]
    rule: str


def roles(classes: Classes, trees: Trees, entry: Ref) -> tuple[RoleFact, ...]:
    """The roles that classes play for one entry. An encoder that is the entry itself is left out: it has no other part."""
    search = _Search(classes, trees)
    found: list[RoleFact] = []
    decoder = search.decoder(entry)
    if decoder is not None and _takes_cache(classes, decoder.ref):
        found.append(_fact(classes, Role.DECODER, entry, decoder))
    for modality in ENCODERS:
        encoder = search.encoder(entry, modality)
        if encoder is not None and encoder.path:
            found.append(_fact(classes, Role.ENCODER, entry, encoder))
    return tuple(found)


def _fact(classes: Classes, role: Role, entry: Ref, found: Found) -> RoleFact:
    return RoleFact(
        role=role,
        ref=found.ref,
        entry=entry,
        path=found.path,
        reason=f"{'.'.join([entry.name, *found.path])}: {found.rule}",
        span=classes.source.span(found.ref),
    )


def _takes_cache(classes: Classes, ref: Ref) -> bool:
    """A decoder's forward keeps what it has seen: it takes a cache of key and value states."""
    method = classes.method(ref, "forward")
    if method is None:
        return False
    arguments = method[1].args
    names = {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    return bool(names & {"past_key_values", "cache_params"})


class _Search:
    def __init__(self, classes: Classes, trees: Trees) -> None:
        self.classes = classes
        self.trees = trees

    def decoder(self, ref: Ref) -> Found | None:
        return self._overridden(ref, "get_decoder") or self._decoder(ref)

    def _decoder(self, ref: Ref) -> Found | None:
        for name in DECODERS:
            if self._has(ref, name):
                return self._step(ref, name, f"get_decoder() looks for `{name}` first of {', '.join(DECODERS)}")
        base = self._base_model(ref)
        if base is not None:
            return self._below(base, self.decoder(base.ref))
        return Found(ref=ref, path=(), rule="get_decoder() finds no part and returns the model itself")

    def encoder(self, ref: Ref, modality: str) -> Found | None:
        return self._overridden(ref, "get_encoder") or self._encoder(ref, modality)

    def _encoder(self, ref: Ref, modality: str) -> Found | None:
        for name in ENCODERS[modality]:
            if self._has(ref, name):
                rule = f"get_encoder({modality!r}) looks for `{name}` among {', '.join(ENCODERS[modality])}"
                return self._step(ref, name, rule)
        base = self._base_model(ref)
        if base is not None:
            found = self.encoder(base.ref, modality)
            if found is not None and found.path:
                return self._below(base, found)
        return Found(ref=ref, path=(), rule="get_encoder() finds no part and returns the model itself")

    def _below(self, base: Found, found: Found | None) -> Found | None:
        return None if found is None else Found(ref=found.ref, path=base.path + found.path, rule=found.rule)

    def _has(self, ref: Ref, attribute: str) -> bool:
        return self._target(ref, attribute) is not None

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

    def _overridden(self, ref: Ref, method: str) -> Found | None:
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
