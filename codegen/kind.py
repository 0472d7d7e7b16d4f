"""What sort of model it is, derived from the roles that its classes play: never from its name."""

from __future__ import annotations

from collections import Counter

from .facts import Modality, ModelFacts, Role


def kind_of(facts: ModelFacts) -> str:
    """What sort of model it is, by the roles of its classes and by what they read."""
    decoders = [role for role in facts.roles if role.role is not Role.ENCODER]
    reads = {role.modality for role in facts.roles if role.role is Role.ENCODER}
    senses = _senses(reads)
    if not decoders:
        words = [*senses, *(["text"] if Modality.TEXT in reads else [])]
        if not words:
            return "composed of other models"
        listed = " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
        return f"{listed} encoder{'s' if len(words) > 1 else ''}"
    crosses = any(_crosses(facts, role.ref.name) for role in decoders)
    if senses:
        return f"{'-'.join(senses)} encoder-decoder" if crosses else f"{'-'.join(senses)}-language"
    twice = any(role.role is Role.EITHER and _made_twice(facts, role.entry.name, role.path) for role in decoders)
    if twice or (crosses and Modality.TEXT in reads):
        return "encoder-decoder"
    if all(role.role is Role.EITHER for role in decoders):
        return "text encoder or decoder"
    return "text decoder"


def _senses(reads: set[Modality]) -> list[str]:
    words = {Modality.IMAGE: "vision", Modality.AUDIO: "audio"}
    return [words[modality] for modality in words if modality in reads]


def _crosses(facts: ModelFacts, name: str) -> bool:
    """Whether a class attends to what another one encoded."""
    forwards = [fact.forward for fact in facts.classes if fact.ref.name == name and fact.forward is not None]
    return any(each.name == "encoder_hidden_states" for forward in forwards for each in forward.parameters)


def _made_twice(facts: ModelFacts, entry: str, path: tuple[str, ...]) -> bool:
    """Whether one class is both the encoder and the decoder beside it: two children of the same class."""
    makers = [fact for fact in facts.classes if path and any(child.attribute == path[-1] for child in fact.children)]
    for fact in makers:
        targets = Counter(child.target for child in fact.children if child.target is not None and not child.repeated)
        part = next(child.target for child in fact.children if child.attribute == path[-1])
        if (
            part is not None
            and targets[part] > 1
            and not any(c.conditional for c in fact.children if c.target == part)
        ):
            return True
    return False
