"""The sweep, as data: what every model is run with. Cases that ask for what a model can't do don't apply to it.

A compile takes seconds where a call takes milliseconds, so cases share compiled variants where they can (`like`), and each
further variant proves several things at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

PROCEDURE = 1
"""Goes up when the same cases are run or compared in another way, so that earlier results count as stale."""

NEW_TOKENS = 4


class Way(StrEnum):
    """How a case calls the model. FORWARD: under inference mode. TRAINING: in training mode, with gradients, which are
    compared too. GENERATE: `generate`, whose tokens and logits are compared."""

    FORWARD = "forward"
    TRAINING = "training"
    GENERATE = "generate"


class Sweep(StrEnum):
    """How much is run. SHORT: what most users do, a compile or two of each region and grad mode. WHOLE: everything."""

    SHORT = "short"
    WHOLE = "whole"


class Instance(StrEnum):
    """Which instance of a model runs a case: settings of a whole model aren't changed between two calls."""

    MAIN = "main"
    EAGER_ATTENTION = "eager attention"
    CHECKPOINTING = "gradient checkpointing"
    LAYER_DROP = "layers left out"
    NO_LAYER_DROP = "layers left out with a tiny chance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is asked of the input maker; see `inputs.Request`. `embeds` and `labels`: where the model can."""

    batch: int = 2
    length: int = 9
    padding: Literal["left", "right"] | None = "left"
    images: int = 1
    image_sizes: tuple[tuple[int, int], ...] = ()
    videos: int = 0
    frames: int = 4
    audios: int = 1
    audio_scale: int = 1
    """Factor on the length of the clips, over the shortest usual one."""
    embeds: bool = False
    labels: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case.

    Attributes:
        needs: What the model has to be able to do (`inputs.abilities`); "generate" besides.
        sizes: The inputs.
        arguments: For the forward, or for `generate`. Those that the model doesn't take are left out.
        autocast: Run in bfloat16 autocast.
        like: The case before it that only has other sizes: a region needs no further variant.
        branches: Its sizes may lie on the other side of a limit in the config (a window or chunk, the image size that
            positions are made for), where upstream's code takes another branch: a region may compile once more.
        sweep: The least that it belongs to.
    """

    name: str
    way: Way = Way.FORWARD
    needs: frozenset[str] = frozenset()
    sizes: Sizes = field(default_factory=Sizes)
    arguments: tuple[tuple[str, Any], ...] = ()
    instance: Instance = Instance.MAIN
    autocast: bool = False
    like: str | None = None
    branches: bool = False
    sweep: Sweep = Sweep.SHORT


def _case(name: str, *needs: str, like: str | None = None, branches: bool = False, **sizes: Any) -> Case:
    return Case(name=name, needs=frozenset(needs), sizes=Sizes(**sizes), like=like, branches=branches)


FIRST = "2 samples of 9 tokens, padded left"
GENERATION = "generate, DynamicCache, 2 x 9"
STATIC = "generate, StaticCache, 2 x 9"
VIDEO = "a video"

# No side below 64: after five halvings a feature map of 32 is 1 wide, which PyTorch compiles apart.
CASES: tuple[Case, ...] = (
    _case(FIRST),
    _case("2 x 17, padded left", "text", length=17, like=FIRST),
    _case("3 x 5, padded right", length=5, batch=3, padding="right", like=FIRST, branches=True),
    _case("4 x 33, padded right", "text", length=33, batch=4, padding="right", like=FIRST, branches=True),
    _case("images of 128 x 128", "images", image_sizes=((128, 128),), like=FIRST, branches=True),
    _case("images of 192 x 64", "images", image_sizes=((192, 64),), like=FIRST, branches=True),
    _case("images of 64 x 128", "images", image_sizes=((64, 128),), like=FIRST),
    _case("images of 256 x 192", "images", image_sizes=((256, 192),), like=FIRST),
    _case("3 images in a sample", "images", "text", images=3, like=FIRST),
    _case(
        "images of two sizes in a sample",
        "image sizes",
        "text",
        images=2,
        image_sizes=((128, 64), (64, 192)),
        like=FIRST,
    ),
    _case(VIDEO, "video", videos=1, images=0),
    _case("a longer video", "video", videos=1, images=0, frames=8, like=VIDEO),
    _case("audio of twice the length", "audio", audio_scale=2, like=FIRST),
    _case("audio of three times the length", "audio", audio_scale=3, like=FIRST),
    Case(
        name=GENERATION,
        way=Way.GENERATE,
        needs=frozenset({"generate"}),
    ),
    Case(
        name="generate, DynamicCache, 3 x 14",
        way=Way.GENERATE,
        needs=frozenset({"generate"}),
        sizes=Sizes(batch=3, length=14),
        like=GENERATION,
    ),
    Case(
        name=STATIC,
        sweep=Sweep.WHOLE,
        way=Way.GENERATE,
        needs=frozenset({"generate"}),
        arguments=(("cache_implementation", "static"),),
    ),
    Case(
        name="generate, StaticCache, 2 x 14",
        sweep=Sweep.WHOLE,
        way=Way.GENERATE,
        needs=frozenset({"generate"}),
        sizes=Sizes(length=14),
        arguments=(("cache_implementation", "static"),),
        like=STATIC,
    ),
    Case(
        name="training with gradients, 1 x 7, no mask, embeddings, hidden states",
        way=Way.TRAINING,
        sizes=Sizes(batch=1, length=7, padding=None, embeds=True, labels=True),
        arguments=(("output_hidden_states", True), ("use_cache", False)),
    ),
    Case(
        name="gradient checkpointing, 2 x 9",
        sweep=Sweep.WHOLE,
        way=Way.TRAINING,
        needs=frozenset({"checkpointing"}),
        sizes=Sizes(labels=True),
        arguments=(("use_cache", False),),
        instance=Instance.CHECKPOINTING,
    ),
    Case(
        name="eager attention, attentions, bfloat16 autocast, 2 x 9",
        sweep=Sweep.WHOLE,
        arguments=(("output_attentions", True), ("use_cache", False)),
        instance=Instance.EAGER_ATTENTION,
        autocast=True,
    ),
)


BY_LAYER: tuple[Case, ...] = tuple(
    Case(
        name=f"training, {instance.value}, 2 x 9",
        way=Way.TRAINING,
        sizes=Sizes(labels=True),
        arguments=(("use_cache", False),),
        instance=instance,
    )
    for instance in (Instance.NO_LAYER_DROP, Instance.LAYER_DROP)
)
"""For models that have regions in training only, in every sweep. Apart from those for all models, whose results it says nothing
about: it doesn't count in the digest."""


def cases(sweep: Sweep) -> tuple[Case, ...]:
    """The cases of a sweep, in the order to run them."""
    return tuple(case for case in CASES if sweep is Sweep.WHOLE or case.sweep is Sweep.SHORT)


def digest(sweep: Sweep) -> str:
    """What stands for the sweep in results: equal for equal sweeps."""
    text = json.dumps([PROCEDURE, NEW_TOKENS, *map(_plain, cases(sweep))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(case: Case) -> dict[str, Any]:
    sizes = {name: getattr(case.sizes, name) for name in Sizes.__slots__}
    return {
        "name": case.name,
        "way": case.way.value,
        "needs": sorted(case.needs),
        "sizes": sizes,
        "arguments": dict(case.arguments),
        "instance": case.instance.value,
        "autocast": case.autocast,
        "like": case.like,
        "branches": case.branches,
    }
