"""What the processes that build and verify are told, and what they say."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Variant(StrEnum):
    """Which calls are compiled. STATIC and DYNAMIC: what `generate` calls, prefill and decode, with a cache of that kind;
    FORWARD: a forward without a cache, under `no_grad` and in inference mode. Encoders run with the prompts of each."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    FORWARD = "forward"


class Phase(StrEnum):
    """WEIGHTS: a checkpoint of random weights is written, from which the processes of a split model load their parts."""

    WEIGHTS = "weights"
    BUILD = "build"
    VERIFY = "verify"
    WHY = "why"


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    model: A model type, or a folder with a config.json.
    config: A config.json, or the folder of one, in place of the model's own.
    store: The folder of the artifacts; "" is the user's.
    variants: Empty: those that the model can do.
    processes: Among how many the model is split, by its tensor-parallel plan; 1: it isn't.
    checkpoint: Where its weights are, if it is; "": there are none yet.
    """

    phase: Phase
    model: str
    config: str | None
    dtype: str
    device: str
    variants: tuple[Variant, ...]
    batches: tuple[int, ...]
    store: str
    generated: str | None
    processes: int = 1
    checkpoint: str = ""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one kind of call.

    Attributes:
        seconds: Building: until everything was compiled and saved. Verifying: the first call, loading included.
        regions: How many calls of each region artifacts served, by compile tag.
        problem: What is wrong with it; None if nothing.
        difference: Verifying: how far from eager, relative to the largest value.
    """

    name: str
    seconds: float
    regions: dict[str, int] = {}
    problem: str | None = None
    difference: float | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a process found. `error`: bad input, in one paragraph; there is nothing else then."""

    cases: tuple[Case, ...] = ()
    error: str | None = None
    label: str = ""
