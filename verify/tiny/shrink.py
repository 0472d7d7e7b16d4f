"""Puts tiny configs together, the parts first."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig, ResNetConfig
from transformers.utils import is_timm_available

from . import relations
from .depths import depths
from .fields import MISSING, Kind, kind
from .sizes import NARROW, VOCABULARY, Sizes
from .tree import Node, read
from .values import QUERIES, shrunk, shrunk_tokens


class CannotShrinkError(Exception):
    """No tiny config of this class could be made; the message says why."""


ATTEMPTS = 5
"""Ways to choose sizes: see `tiny_config`."""


def tiny_config(
    config: type[PreTrainedConfig] | PreTrainedConfig, *, layers: int = 2, attempt: int = 0
) -> PreTrainedConfig:
    """A config for a tiny model of the same type, from `config` or from its class's defaults. Deterministic.

    Widths become 8 to 64, attention heads at most 4, vocabularies at most 256, positions at most 512, experts 4. What was
    equal in the whole tree of configs (a projection's width and the text model's, say) stays equal, layer-type lists are
    cut to one of each kind of layer, and special tokens keep distinct ids inside the vocabulary.

    Args:
        config: a config class, whose defaults are taken, or a config.
        layers: of each stack. There are more where a kind of layer wouldn't occur otherwise.
        attempt: which sizes to try, below `ATTEMPTS`: 0 the smallest; 1 half as much again, which 3 and 6 divide too; 2
            twice as much, as where heads have a size written out; 3 with the widths of stages, of which model code writes
            some out, as they are; 4 with all widths as they are.

    Raises:
        CannotShrinkError: the class can't be made without arguments, or refuses the small sizes.
    """
    if isinstance(config, type):
        try:
            config = _whole(config)
        except Exception as error:
            raise CannotShrinkError(f"{config.__name__} can't be made from its defaults: {_line(error)}") from error
    tree = read(config)
    match attempt:
        case 0:
            sizes = Sizes(tree)
        case 1:
            sizes = Sizes(tree, 48)
        case 2:
            sizes = Sizes(tree, 64)
        case 3:
            sizes = Sizes(tree, keep_stages=True)
        case _:
            sizes = Sizes(tree, keep_stages=True, keep_widths=True)
    return _rebuild(tree, sizes, layers)


def _whole(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A config of `cls` as it is by default, with the encoders of images and audio that it would do without."""
    config = cls()
    absent = [
        name for name in ("vision_config", "audio_config") if name in cls.sub_configs and getattr(config, name) is None
    ]
    if not absent:
        return config
    try:
        return cls(**{name: {} for name in absent})
    except Exception:  # which class, or which sizes, it leaves to the checkpoint
        return config


def _rebuild(node: Node, sizes: Sizes, layers: int) -> PreTrainedConfig:
    cls = type(node.config)
    changes: dict[str, Any] = {name: _part(name, part, sizes, layers) for name, part in node.parts.items()}
    changes |= depths(node, layers, sizes)
    for name, value in node.given.items():
        if name not in changes:
            changes[name] = shrunk(name, value, node, sizes)
    changes |= _missing(node, changes, sizes)
    changes |= relations.repaired(node, changes, sizes)
    changes = {
        name: _as_read(value)
        for name, value in changes.items()
        if name in node.parts or name in node.given or name in node.derived or name in ("out_indices",)
    }
    try:
        try:
            made = cls(**changes)
        except Exception:  # what it fills in itself doesn't go with the small sizes
            made = cls(**changes | _constants(node, None, sizes))
        if constants := _constants(node, made, sizes):
            made = cls(**changes | constants)
    except Exception as error:
        raise CannotShrinkError(f"{cls.__name__} refuses the sizes: {_line(error)}") from error
    _set_undeclared(node, made, sizes)
    _agree(node, made)
    return made


def _as_read(value: Any) -> Any:
    """`value` as a checkpoint's config.json would bring it, which has no tuples."""
    return [_as_read(each) for each in value] if isinstance(value, list | tuple) else value


def _constants(node: Node, made: PreTrainedConfig | None, sizes: Sizes) -> dict[str, Any]:
    """Fields that the class fills in where they are None, but not from other fields: they are still large in `made`."""
    found: dict[str, Any] = {}
    for name, value in node.derived.items():
        now = vars(made).get(name) if made is not None else value
        if (
            (isinstance(value, dict) and not name.endswith(QUERIES))
            or isinstance(now, bool)
            or now != value
            or kind(name) is Kind.TOKEN
        ):
            continue
        small = shrunk(name, value, node, sizes)
        if small != value:
            found[name] = small
    return found


def _missing(node: Node, changes: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Values where the class leaves None and the model may need one."""
    absent = [
        name for name, value in changes.items() if value is None or (isinstance(value, list | tuple) and not value)
    ]
    found = {name: copy.deepcopy(MISSING[name]) for name in absent if name in MISSING}
    experts = any("expert" in name and isinstance(value, int) and value for name, value in changes.items())
    if "mask_token_id" in changes and "pad_token_id" in absent:
        found["pad_token_id"] = 0
    depth = changes.get("num_hidden_layers")
    if isinstance(depth, int):
        if "mlp_layer_types" in absent:
            found["mlp_layer_types"] = ["dense", *["sparse"] * (depth - 1)]
        if "layer_types" in absent:
            found["layer_types"] = ["full_attention"] * depth
    for name in absent:
        # Where the small sizes don't do, an absent number of experts may be why.
        dense = name in MISSING and ("expert" in name or name.startswith("moe")) and not experts
        everywhere = name == "sliding_window" and "sliding_attention" not in changes.get("layer_types", ())
        # Most models do without these.
        optional = name in ("num_key_value_heads", "clip_qkv")
        if ((dense or optional) and sizes.narrow == NARROW) or everywhere:
            del found[name]
        elif name in ("image_token_id", "image_token_index", "video_token_id", "video_token_index", "audio_token_id"):
            found[name] = VOCABULARY - 50 - ("video", "audio", "image").index(name.split("_")[0])
    return found


def _agree(node: Node, made: PreTrainedConfig) -> None:
    """An encoder whose output goes into the text model is as wide as that, also where the defaults of the two differ."""
    text = next(
        (vars(made)[name] for name in ("text_config", "llm_config", "language_config") if name in node.parts), None
    )
    encoders = [vars(made)[name] for name in ("encoder_config", "vision_config", "audio_config") if name in node.parts]
    encoder_width = getattr(encoders[0], "hidden_size", None) if encoders else None
    for name in ("projector_config", "qformer_config"):
        if name in node.parts and isinstance(encoder_width, int):
            vars(made)[name].encoder_hidden_size = encoder_width
    width = getattr(text, "hidden_size", None)
    if width is None:
        return
    for name in node.parts:
        part = vars(made)[name]
        for field in ("out_hidden_size", "text_hidden_size"):
            if part is not text and isinstance(vars(part).get(field), int):
                setattr(part, field, width)


def _part(name: str, part: Node, sizes: Sizes, layers: int) -> PreTrainedConfig:
    """A sub-config; a backbone of a library that isn't installed gives way to a ResNet."""
    if part.config.model_type == "timm_backbone" and not is_timm_available():
        return ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic",
            out_features=["stage2", "stage3", "stage4"][-max(1, len(part.config.out_indices or [0])) :],
        )  # fmt: skip
    return _rebuild(part, sizes, layers)


def _set_undeclared(node: Node, made: PreTrainedConfig, sizes: Sizes) -> None:
    """Token ids and flags outside of the class's declared fields."""
    for name, value in vars(made).items():
        if kind(name) is Kind.TOKEN and name not in node.given and value is not None:
            if value == vars(node.config).get(name):
                setattr(made, name, shrunk_tokens(value, sizes))
    for name, value in vars(node.config).items():
        # Flags that only a config of some of its users has.
        if isinstance(value, bool) and name not in vars(made):
            setattr(made, name, value)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
