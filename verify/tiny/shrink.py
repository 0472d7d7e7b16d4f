"""Puts tiny configs together, the parts first."""

from __future__ import annotations

import copy
from math import gcd
from typing import Any

from transformers import PreTrainedConfig, ResNetConfig
from transformers.utils import is_timm_available

from . import relations
from .fields import MISSING, PER_LAYER, UNDECLARED, Kind, kind
from .sizes import NARROW, VOCABULARY, Sizes
from .tree import Node, read

_HEADS = 4
_EXPERTS = 4
_SPAN = 2
_POSITIONS = 512
_FRAMES = 64
_WINDOW = 8
_COUNT = 8
_FILTERS = 4
_LONGEST_PERIOD = 8
_QUERIES = "patch_to_query_dict"
"""The end of a field's name that maps numbers of patches to numbers of queries."""


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
    changes |= _depths(node, layers, sizes)
    for name, value in node.given.items():
        if name not in changes:
            changes[name] = _shrunk(name, value, node, sizes)
    changes |= _missing(node, changes, sizes)
    changes |= relations.repaired(node, changes, sizes)
    changes = {
        name: value
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


def _constants(node: Node, made: PreTrainedConfig | None, sizes: Sizes) -> dict[str, Any]:
    """Fields that the class fills in where they are None, but not from other fields: they are still large in `made`."""
    found: dict[str, Any] = {}
    for name, value in node.derived.items():
        now = vars(made).get(name) if made is not None else value
        if (
            (isinstance(value, dict) and not name.endswith(_QUERIES))
            or isinstance(now, bool)
            or now != value
            or kind(name) is Kind.TOKEN
        ):
            continue
        small = _shrunk(name, value, node, sizes)
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
                setattr(made, name, _tokens(value, sizes))
    for name, value in vars(node.config).items():
        # Flags that only a config of some of its users has.
        if isinstance(value, bool) and name not in vars(made):
            setattr(made, name, value)


def set_undeclared(config: PreTrainedConfig, missing: AttributeError) -> bool:
    """Set a field that model code missed, on the configs in the tree of `config` of that class; whether any was set."""
    name = missing.name
    if name not in UNDECLARED:
        return False
    lacking = [each.config for each in read(config).all() if type(each.config) is type(missing.obj)]
    lacking = [each for each in lacking if name not in vars(each)]
    for each in lacking:
        setattr(each, name, UNDECLARED[name])
    return bool(lacking)


def _depths(node: Node, layers: int, sizes: Sizes) -> dict[str, Any]:
    """Numbers of layers, and the lists that go with them."""
    values = node.values()
    scalars = {
        name: value
        for name, value in values.items()
        if kind(name) is Kind.LAYERS and isinstance(value, int) and not isinstance(value, bool)
    }
    stages = {
        len(value)
        for name, value in values.items()
        if isinstance(value, list | tuple) and len(value) > 1 and not PER_LAYER.search(name)
        if kind(name) not in (Kind.LAYER_INDEX, Kind.LAYER_SUBSET, Kind.TOKEN)
    }
    found: dict[str, Any] = {}
    periods = [
        value + (1 if name.endswith("offset") else 0)
        for name, value in values.items()
        if kind(name) is Kind.PERIOD
        and isinstance(value, int)
        and not isinstance(value, bool)
        and 1 < value <= _LONGEST_PERIOD
    ]
    # Kinds of layers that come round again and again.
    periods += [
        len(value)
        for name, value in values.items()
        if name.endswith("block_types") and isinstance(value, list | tuple) and len(set(value)) > 1
        if len(value) <= _LONGEST_PERIOD
    ]
    for name, depth in scalars.items():
        if depth <= 1 or (depth in stages and depth <= _LONGEST_PERIOD + 4):
            found[name] = depth
            continue
        if isinstance(nested := values.get("attention_types"), list) and nested and isinstance(nested[0], list):
            found["attention_types"] = [[nested[0][0], 1]]
            found[name] = len(nested[0][0])
            continue
        lists = {
            key: list(value)
            for key, value in values.items()
            if isinstance(value, list | tuple) and len(value) == depth and _per_layer(key, value)
        }
        if lists:
            kept = _one_of_each(lists, depth, layers)
            for key, value in lists.items():
                cut = [value[place] for place in kept]
                if key.endswith("source_layers"):
                    cut = [
                        each if each is None else max((at for at, old in enumerate(kept) if old <= each), default=0)
                        for each in cut
                    ]
                found[key] = (
                    [_shrunk(key, each, node, sizes) for each in cut] if kind(key) in (Kind.INNER, Kind.HEADS) else cut
                )
                if set(cut) == {"linear_attention"} and "num_attention_heads" in values:
                    # It is made for layers of both kinds; the cache asks those that attend how long it is.
                    found[key] = [*cut[:-1], "full_attention"]
            found[name] = len(kept)
        else:
            indexes = [
                len(set(value))
                for key, value in values.items()
                if kind(key) is Kind.LAYER_INDEX and isinstance(value, list | tuple)
            ]
            found[name] = min(depth, max([layers, *indexes, *periods]))
    main = max((value for name, value in found.items() if name in scalars), default=layers)
    deepest = max(scalars.values(), default=0)
    for name, value in values.items():
        what = kind(name)
        if what is Kind.LAYERS and isinstance(value, list | tuple):
            # Some code takes a stage's number for a layer's.
            most = max(layers, len(value)) if sizes.keep_stages else layers
            found[name] = type(value)(min(each, most) if isinstance(each, int) else each for each in value)
        elif what is Kind.LAYER_COUNT and isinstance(value, int):
            # Layers that share the keys of others need one of their own kind among those.
            found[name] = 0 if "shared" in name else min(value, main - 1)
        elif what is Kind.LAYER_INDEX and name not in found:
            found[name] = _indexes(value, *_stack(value, scalars, found, (deepest, main)))
        elif what is Kind.LAYER_SUBSET and isinstance(value, list | tuple) and value:
            if len(value) == deepest:
                found[name] = type(value)(value[:main])
            else:
                found[name] = type(value)([main - 1])
    out = getattr(node.config, "_out_indices", None)
    if out and hasattr(node.config, "stage_names"):
        found["out_indices"] = _indexes(list(out), deepest, main) if deepest > main else list(out)
    return found


def _stack(value: Any, scalars: dict[str, int], found: dict[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    """The depth, before and now, of the one stack that is deep enough for the indexes in `value`; `default` if unclear."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, int) for each in value):
        return default
    deep = [name for name, depth in scalars.items() if depth > max(value, default=0)]
    return (scalars[deep[0]], found[deep[0]]) if len(deep) == 1 else default


def _per_layer(name: str, value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a list as long as a stack is deep says something of each layer, and isn't one of the layers' indexes."""
    if PER_LAYER.search(name) or name.endswith("source_layers"):
        return True
    return len(value) > _LONGEST_PERIOD + 4 and len({repr(each) for each in value}) < len(value)


def _one_of_each(lists: dict[str, list[Any]], depth: int, layers: int) -> list[int]:
    """The layers that stay: the first of each combination of kinds, and as many more as were asked for."""
    combined = list(zip(*(map(repr, value) for value in lists.values()), strict=True))
    first = sorted({combined.index(each) for each in combined})
    rest = [place for place in range(depth) if place not in first]
    return sorted([*first, *rest[: max(0, layers - len(first))]])


def _indexes(value: Any, depth: int, main: int) -> Any:
    """Indexes of layers, inside the new depth and still distinct; those from the end stay from the end."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return max(value, -main) if value < 0 else min(value, main - 1) if depth else value
    if not isinstance(value, list | tuple) or not all(isinstance(each, int) for each in value):
        return value
    if not depth or max(value, default=0) > depth:
        # The layers are another part's.
        depth = max((each + 1 for each in value), default=0)
    last = main if any(each >= depth for each in value) else main - 1
    positive = sorted({each for each in value if each >= 0})
    places = {each: max(0, last - (len(positive) - 1 - place)) for place, each in enumerate(positive)}
    negative = sorted({each for each in value if each < 0}, reverse=True)
    places |= {each: max(-main, -1 - place) if each < -main else each for place, each in enumerate(negative)}
    return type(value)(places[each] for each in value)


def _shrunk(name: str, value: Any, node: Node, sizes: Sizes) -> Any:
    """A field's new value, for what its name means; fields that depend on others are seen to in `relations`."""
    if isinstance(value, bool) or value is None:
        return value
    what = kind(name)
    if what is Kind.TOKEN:
        return _tokens(value, sizes)
    if isinstance(value, list | tuple):
        if what in (Kind.WIDTH, Kind.INNER):
            return type(value)(_shrunk(name, each, node, sizes) for each in value)
        if what is Kind.HEADS and value and all(isinstance(each, int) for each in value):
            common = gcd(*value) or 1
            return type(value)(
                max(1, each // common) if max(value) // common <= 16 else min(each, _HEADS) for each in value
            )
        if what in (Kind.EXPERTS, Kind.TOP_K, Kind.WINDOW):
            return type(value)(_shrunk(name, each, node, sizes) for each in value)
        return copy.deepcopy(value)
    if isinstance(value, float) and name in relations.COEFFICIENTS:
        return min(value, 1.0)
    if isinstance(value, dict) and name.endswith(_QUERIES):
        return {patches: min(4, *value.values()) for patches in (4, 16, 64)}
    if not isinstance(value, int):
        return copy.deepcopy(value)
    if value <= 0:
        return value
    match what:
        case Kind.WIDTH:
            return sizes.width(value)
        case Kind.INNER:
            bottleneck = not any("expert" in each for each in node.values())
            return sizes.inner(value, relations.width(node.values()), bottleneck=bottleneck)
        case Kind.HEADS:
            return relations.heads(name, value, node)
        case Kind.HEAD_DIM:
            return 16 if value >= 128 else 8 if value > 16 else value
        case Kind.VOCABULARY:
            return min(value, VOCABULARY)
        case Kind.POSITIONS:
            return min(value, _POSITIONS)
        case Kind.FRAMES:
            return min(value, _FRAMES)
        case Kind.SPAN:
            return min(value, _SPAN)
        case Kind.EXPERTS:
            return min(value, _EXPERTS)
        case Kind.TOP_K:
            return min(value, 2)
        case Kind.EXPERT_GROUPS:
            return min(value, 2)
        case Kind.TOP_GROUPS:
            return 1
        case Kind.GROUPS:
            return (
                sizes.widths[value] if value in sizes.widths and value > 32 else gcd(value, 4) if value > 4 else value
            )
        case Kind.WINDOW:
            return min(value, _WINDOW)
        case Kind.COUNT:
            return min(value, _COUNT)
        case Kind.FILTERS:
            return value if sizes.keep_widths else min(value, _FILTERS)
        case _:
            return value


def _tokens(value: Any, sizes: Sizes) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_tokens(each, sizes) for each in value)
    return sizes.tokens.get(value, value) if isinstance(value, int) else value


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
