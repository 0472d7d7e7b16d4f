"""What the fields of a config have to satisfy among themselves, kept where the original satisfies it."""

from __future__ import annotations

import copy
import inspect
import re
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any

from .fields import Kind, kind
from .sizes import Sizes
from .tree import Node

COEFFICIENTS = ("width_coefficient", "depth_coefficient", "width_multiplier")
"""Factors on all widths or depths: at most 1."""
_HEADS = 4
_SIDE = 64
"""Images get at most about this side, in pixels, and at least 4 patches a side."""


def heads(name: str, value: int, node: Node) -> int:
    """A smaller number of heads in the same ratio to the query heads beside it."""
    prefix = (
        name.split("_")[0]
        if name.startswith(("linear", "mamba", "encoder", "decoder", "index", "global", "swa"))
        else ""
    )
    beside = [
        each
        for key, each in node.values().items()
        if kind(key) is Kind.HEADS and isinstance(each, int) and not isinstance(each, bool) and each > 0
        if (key.startswith(prefix) if prefix else True)
    ]
    most = max(beside) if prefix else max([each for each in beside if each % value == 0], default=value)
    if value == most:
        return min(value, _HEADS) if value != 3 else 4
    if value == 1:
        return 1
    return 2 if most > 2 else 1


def repaired(node: Node, changes: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The fields of `changes` that have to differ, with their values."""
    values = node.values()
    found: dict[str, Any] = {}
    _head_dims(values, changes, found)
    _state_space(values, changes, found, sizes)
    _sums(values, changes, found)
    _parts(values, changes, found, sizes)
    _images(node, values, changes, found)
    _layers_beside(values, changes, found)
    _tiles(node, values, changes, found)
    _merged(node, values, changes, found)
    _positions(values, changes | found, found)
    _rope(node, values, changes | found, found)
    return found


def _int(values: dict[str, Any], *names: str) -> int | None:
    for name in names:
        if isinstance(value := values.get(name), int) and not isinstance(value, bool):
            return value
    return None


_WIDTHS = ("hidden_size", "d_model", "n_embd", "embed_dim", "hidden_dim", "dim")


def width(values: dict[str, Any]) -> int:
    """The main width of a config; 0 where it has none."""
    return _int(values, *_WIDTHS) or 0


_QUERY_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads", "num_heads")


def _head_dims(values: dict[str, Any], changes: dict[str, Any], found: dict[str, Any]) -> None:
    """A head dimension that is the width through the heads stays that."""
    width, count = _int(values, *_WIDTHS), _int(values, *_QUERY_HEADS)
    new_width, new_count = _int(changes, *_WIDTHS), _int(changes, *_QUERY_HEADS)
    if not (width and count and new_width and new_count):
        return
    for name in ("head_dim", "attention_head_dim", "attention_head_size", "kv_channels", "d_kv", "dim_head", "d_head"):
        old = _int(changes, name)
        if old and values[name] * count == width:
            found[name] = new_width // new_count


def _state_space(values: dict[str, Any], changes: dict[str, Any], found: dict[str, Any], sizes: Sizes) -> None:
    """Heads times their size is the inner width of a state-space layer, which is the width times a factor."""
    for count, size in (
        ("mamba_n_heads", "mamba_d_head"), ("mamba_num_heads", "mamba_head_dim"), ("num_heads", "head_dim"),
        ("n_mamba_heads", "mamba_headdim"), ("mamba_n_heads", "mamba_head_dim"),
    ):  # fmt: skip
        expand = _int(values, "expand", "mamba_expand") or 1
        old_count, old_size, width = _int(values, count), _int(values, size), _int(values, *_WIDTHS)
        if not (old_count and old_size and width) or (count == "num_heads" and "expand" not in values):
            continue
        inner = next(
            (each for name, each in values.items() if kind(name) is Kind.WIDTH and each == old_count * old_size), None
        )
        new_width = _int(changes, *_WIDTHS)
        assert new_width
        if old_count * old_size == expand * width:
            target = expand * new_width
        elif inner:
            target = sizes.width(inner)
        else:
            continue
        new_size = next(each for each in (16, 8, 4, 2, 1) if target % each == 0 and target // each >= 2)
        found[count], found[size] = target // new_size, new_size
        for groups in ("n_groups", "mamba_n_groups", "mamba_ngroups"):
            old = _int(values, groups)
            if old:
                found[groups] = 2 if old > 1 and found[count] % 2 == 0 else 1


def _sums(values: dict[str, Any], changes: dict[str, Any], found: dict[str, Any]) -> None:
    """A head of a rotated and an unrotated part."""
    plain, rotated = _int(changes, "qk_nope_head_dim"), _int(changes, "qk_rope_head_dim")
    if plain is not None and rotated is not None:
        for name in ("qk_head_dim", "head_dim"):
            if name in changes and _int(values, name) == values["qk_nope_head_dim"] + values["qk_rope_head_dim"]:
                found[name] = plain + rotated
            elif name in changes and _int(values, name) == values["qk_rope_head_dim"]:
                found[name] = rotated


def _parts(values: dict[str, Any], changes: dict[str, Any], found: dict[str, Any], sizes: Sizes) -> None:
    """Widths that add up to the main one, or that have the factor on all widths in them; a head size where the class leaves
    it open."""
    before, now = width(values), width(changes)
    coordinate, shape = _int(values, "coordinate_size"), _int(values, "shape_size")
    if coordinate and shape and 4 * coordinate + 2 * shape == before:
        found["shape_size"], found["coordinate_size"] = (now // 6, now // 6) if now % 6 == 0 else (now // 4, now // 8)
    factor = values.get("width_coefficient")
    if isinstance(factor, float) and factor > 1 and sizes.keep_stages and (last := _int(values, "hidden_dim")):
        found["hidden_dim"] = int(last / factor)
    if (half := _int(values, "num_pos_feats")) and 2 * half in sizes.widths:
        found["num_pos_feats"] = sizes.widths[2 * half] // 2
    if (
        (ratio := values.get("pixel_shuffle_ratio"))
        and "projector_input_dim" in values
        and "intermediate_size" in changes
    ):
        found["intermediate_size"] = int(now / ratio**2)
    if (pool := _int(values, "index_kpool")) and _int(values, "index_topk"):
        found["index_topk"] = pool
    count = _int(changes, *_QUERY_HEADS)
    if "head_dim" in changes and changes["head_dim"] is None and now and count:
        found["head_dim"] = now // count


def _images(node: Node, values: dict[str, Any], changes: dict[str, Any], found: dict[str, Any]) -> None:
    for name, value in values.items():
        if kind(name) is Kind.IMAGE and name in changes:
            if isinstance(value, int) and not isinstance(value, bool) and value > _SIDE:
                found[name] = side(value, _patch(values))
            elif isinstance(value, list | tuple) and all(isinstance(each, int) for each in value):
                patches = values.get("patch_stride") or values.get("patch_size")
                each_patch = (
                    patches
                    if isinstance(patches, list | tuple) and len(patches) == len(value)
                    else [_patch(values)] * len(value)
                )
                found[name] = type(value)(side(each, patch) for each, patch in zip(value, each_patch, strict=True))
    stages = [
        len(each) for name, each in values.items() if kind(name) is Kind.LAYERS and isinstance(each, list | tuple)
    ]
    window, size = changes.get("window_size"), found.get("image_size", changes.get("image_size"))
    if stages and isinstance(window, int) and size:
        # The last stage's map has to hold a window.
        last = (min(size) if isinstance(size, list | tuple) else size) // (_patch(values) * 2 ** (stages[0] - 1))
        found["window_size"] = max(1, min(window, last))
    old = _grid(node)
    if old:
        size, patch = old
        new_size = side(size, patch)
        if tiles := values.get("image_grid_pinpoints"):
            found["image_grid_pinpoints"] = [[each // size * new_size for each in pair] for pair in tiles]
        new = (new_size // patch) ** 2
        before = (size // patch) ** 2
        for name, value in values.items():
            if kind(name) is Kind.GRID and isinstance(value, int) and name in changes and value > 4:
                if value * new % before == 0:
                    found[name] = max(1, value * new // before)
                elif isqrt(value) ** 2 == value:
                    found[name] = 4


def _layers_beside(values: dict[str, Any], changes: dict[str, Any], found: dict[str, Any]) -> None:
    """A width of several layers' outputs side by side, and maybe that of the last one."""
    before, now = width(values), width(changes)
    counts = [len(each) for name, each in values.items() if kind(name) is Kind.LAYER_INDEX and isinstance(each, list)]
    for name, value in values.items():
        for count in counts:
            if before and count > 1 and kind(name) is Kind.WIDTH and value in (count * before, (count + 1) * before):
                found[name] = value // before * now


def _tiles(node: Node, values: dict[str, Any], changes: dict[str, Any], found: dict[str, Any]) -> None:
    """A patch that is a whole image to the encoder of a part."""
    sizes = {
        size: vars(changes[name]).get("image_size")
        for name, part in node.parts.items()
        if isinstance(size := part.values().get("image_size"), int)
    }
    if isinstance(patch := values.get("patch_size"), int) and patch in sizes:
        found["patch_size"] = sizes[patch]


def _merged(node: Node, values: dict[str, Any], changes: dict[str, Any], found: dict[str, Any]) -> None:
    """Widths of a square of an encoder's patches, one after the other."""
    for name, part in node.parts.items():
        before, made = part.values(), changes[name]
        count = (_int(before, "merge_size", "spatial_merge_size") or 1) ** 2
        if count > 1 and (wide := width(before)):
            for field, value in values.items():
                if kind(field) is Kind.WIDTH and value == count * wide:
                    found[field] = count * width(vars(made))


def side(value: int, patch: int) -> int:
    """A smaller side of an image, in pixels: 4 patches or more, and a multiple of them."""
    if value <= _SIDE and value <= 8 * patch:
        return value
    if _SIDE % patch == 0 and _SIDE // patch in (4, 8, 16):
        return _SIDE
    return patch * min(value // patch, 4 if patch > 8 else 8 if patch > 4 else 16)


def _patch(values: dict[str, Any]) -> int:
    patch = values.get("patch_stride") or values.get("patch_size")
    if isinstance(patch, list | tuple) and patch and isinstance(patch[0], int):
        patch = patch[0]
    return patch if isinstance(patch, int) and patch > 0 else 4


def _grid(node: Node) -> tuple[int, int] | None:
    for part in node.all():
        each = part.values()
        if isinstance(size := each.get("image_size"), int) and isinstance(each.get("patch_size"), int):
            return size, each["patch_size"]
    return None


def _positions(values: dict[str, Any], changes: dict[str, Any], found: dict[str, Any]) -> None:
    if (old := _int(values, "num_position_embeddings")) and "num_position_embeddings" in changes:
        found["num_position_embeddings"] = min(old, 256)


def _rope(node: Node, values: dict[str, Any], changes: dict[str, Any], found: dict[str, Any]) -> None:
    """Sections of the rotary embedding from the head size; factors and original lengths from the new length."""
    rope = values.get("rope_parameters")
    width, count = _int(changes, *_WIDTHS), _int(changes, *_QUERY_HEADS)
    if isinstance(rope, dict) and width and count:
        head = _int(changes, "head_dim") or width // count
        partial, old_count = rope.get("partial_rotary_factor"), _int(values, *_QUERY_HEADS)
        if isinstance(partial, float) and partial > 1 and old_count:
            rope = rope | {
                "partial_rotary_factor": partial * count / old_count
            }  # over several heads: so much of the width
        made = (
            _parameters(rope, values, head, _source_sections(inspect.getsourcefile(type(node.config)) or ""))
            if rope
            else {}
        )
        if not rope and isinstance(types := changes.get("layer_types"), list):
            plain = {"rope_type": "default", "rope_theta": 10000.0}
            made = {
                each: _parameters(
                    plain, values, head, _source_sections(inspect.getsourcefile(type(node.config)) or "")
                )
                for each in set(types)
            }
        if made != values["rope_parameters"]:
            found["rope_parameters"] = made
    if (rotary := _int(values, "rotary_dim")) and width and count:
        head = _int(changes, "head_dim") or width // count
        old_width = values[next(n for n in _WIDTHS if n in values)]
        old_head = _int(values, "head_dim") or old_width // (_int(values, *_QUERY_HEADS) or 1)
        found["rotary_dim"] = max(2, head * rotary // old_head // 2 * 2)


@cache
def _source_sections(file: str) -> tuple[int, ...]:
    """The sections that the modeling file beside the config's takes where the config names none."""
    path = Path(file).with_name(Path(file).name.replace("configuration_", "modeling_")) if file else None
    if path is None or not path.is_file():
        return ()
    text = path.read_text()
    if '.get("mrope_section")' in text:
        return (1, 1, 1, 1)  # it can't do without, and takes any
    found = re.search(r"""get\("mrope_section", \[([\d, ]+)\]""", text)
    return tuple(map(int, found[1].split(","))) if found else ()


def _parameters(rope: dict[str, Any], values: dict[str, Any], head: int, default: tuple[int, ...]) -> dict[str, Any]:
    made = copy.deepcopy(rope)
    for name, value in made.items():
        if isinstance(value, dict):
            made[name] = _parameters(value, values, head, default)
    partial = made.get("partial_rotary_factor", values.get("partial_rotary_factor")) or 1.0
    half = int(head * partial) // 2
    nested = any(isinstance(value, dict) for value in made.values())
    if section := made.get("mrope_section") or (() if nested else default):
        made["mrope_section"] = sections(list(section), half)
    if original := made.get("original_max_position_embeddings"):
        longest = _int(values, "max_position_embeddings") or original
        made["original_max_position_embeddings"] = max(16, original * min(longest, 512) // longest)
    for name in ("short_factor", "long_factor"):
        if isinstance(factors := made.get(name), list):
            made[name] = factors[:half]
    return made


def sections(section: list[int], half: int) -> list[int]:
    """`half` rotary frequencies shared out as they were, each part at least one."""
    parts = [max(1, each * half // sum(section)) if each else 0 for each in section]
    while sum(parts) < half:
        short = max(range(len(parts)), key=lambda place: section[place] / (parts[place] or 1e9))
        parts[short] += 1
    while sum(parts) > half and max(parts) > 1:
        parts[parts.index(max(parts))] -= 1
    return parts
