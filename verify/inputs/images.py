"""Images and videos, in each of the layouts that models take. What a config leaves open is tried in order by `make`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .facts import Facts
from .request import CannotMakeInputsError, Request

Inputs = dict[str, Any]
_SIDE = 64


def first(value: Any, default: int) -> int:
    """An integer that may be written as a list, or as height and width in a dict."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        value = value[-1] if value else default
    return value if isinstance(value, int) and value > 0 else default


def channels(facts: Facts) -> int:
    value = facts.find("num_channels", "in_channels", "in_chans", "image_channels", within="vision")
    return value if isinstance(value, int) and value <= 16 else 3


def patch(facts: Facts) -> int:
    return first(facts.find("patch_size", "spatial_patch_size", within="vision"), 4)


def merge(facts: Facts) -> int:
    """The side of the square of patches that becomes one token."""
    value = facts.find(
        "spatial_merge_size",
        "merge_size",
        "merge_kernel_size",
        "downsample_factor",
        "pixel_shuffle_factor",
        within="vision",
    )
    value = value or facts.find(
        "spatial_merge_size", "merge_kernel_size", "downsample_factor", "projector_patch_merge_size"
    )
    return first(value, 1)


def sizes(facts: Facts, request: Request, count: int, step: int) -> list[tuple[int, int]]:
    """Heights and widths in pixels of `count` images, multiples of `step`."""
    asked = request.image_sizes or (default_size(facts),)
    rounded = [(-(-height // step) * step, -(-width // step) * step) for height, width in asked]
    return [rounded[place % len(rounded)] for place in range(count)]


def default_size(facts: Facts) -> tuple[int, int]:
    value = facts.find("image_size", "img_size", "train_size", within="vision")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple) and len(value) >= 2 and all(isinstance(each, int) for each in value):
        return value[-2], value[-1]
    value = first(value, 0)
    return (value, value) if value else (_SIDE, _SIDE)


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def grids(facts: Facts, request: Request, count: int, frames: int = 1) -> Tensor:
    """Grids of packed images [images, 3]: temporal patches, rows and columns of patches."""
    size = patch(facts)
    step = merge(facts)
    window = max(step, 1)
    if request.image_sizes:
        found = sizes(facts, request, count, size * window)
        return torch.tensor([[frames, height // size, width // size] for height, width in found])
    return torch.tensor([[frames, 2 * window, 2 * window]] * count)


def packed(facts: Facts, grid: Tensor, generator: torch.Generator) -> Tensor:
    """Patches of all images one after the other [patches, pixels of a patch]."""
    temporal = first(facts.find("temporal_patch_size", within="vision"), 1)
    pixels = channels(facts) * temporal * patch(facts) ** 2
    return noise((int(grid.prod(-1).sum()), pixels), generator)


def image_inputs(facts: Facts, request: Request, seed: int) -> Iterator[Inputs]:
    """What the images of all samples may look like to the model, the likeliest first."""
    each = 1 if request.images is None else request.images
    yield from _layouts(
        facts,
        request,
        request.batch * each,
        each,
        seed,
        pixels="pixel_values",
        grid=("image_grid_thw", "image_grid_hws", "image_grid_hw", "grid_thw", "grid_hws", "grid_thws"),
    )


def _same_size(found: list[tuple[int, int]]) -> tuple[int, int]:
    if len(set(found)) > 1:
        raise CannotMakeInputsError("images of one call have to have one size: they're stacked in one tensor")
    return found[0]


def _layouts(
    facts: Facts, request: Request, total: int, each: int, seed: int, *, pixels: str, grid: tuple[str, ...]
) -> Iterator[Inputs]:
    def fresh() -> torch.Generator:
        return torch.Generator().manual_seed(seed + 1)

    c, p, m, batch = channels(facts), patch(facts), merge(facts), request.batch
    named = next((name for name in grid if facts.takes(name)), None)
    if named:
        # A window of rows may be merged, so 2 windows a side; some patch embeddings take 4-D patches.
        made = grids(facts, request, total)
        shown = made[:, 1:] if named.endswith(("_hw", "_hws")) else made
        merged = facts.takes("image_merge_sizes", "merge_sizes")
        more: Inputs = (
            {"merge_sizes" if facts.takes("merge_sizes") else "image_merge_sizes": torch.full((total,), m)}
            if merged
            else {}
        )
        yield {pixels: packed(facts, made, fresh()), named: shown, **more}
        count = int(made.prod(-1).sum())
        yield {pixels: noise((count, c, p, p), fresh()), named: shown, **more}
        yield {pixels: noise((1, count, c, p, p), fresh()), named: shown, **more}
        yield {pixels: noise((count, c * p * p), fresh()), named: shown, **more}
        yield {pixels: noise((count, c * 2 * p * p), fresh()), named: shown, **more}
        if total == batch:
            yield {pixels: packed(facts, made, fresh()).reshape(batch, count // batch, -1), named: shown, **more}
    if facts.takes(
        "spatial_shapes", "pixel_position_ids", "image_position_ids", "patches_grid", "tgt_sizes", "target_sizes"
    ):
        yield from _patch_lists(facts, request, total, c, p, pixels, fresh)
    if facts.takes("aspect_ratio_ids") and pixels == "pixel_values":
        height, width = _same_size(sizes(facts, request, total, p))
        tiles = first(facts.find("max_num_tiles"), 4)
        mask = torch.ones(batch, each, tiles, dtype=torch.long)
        made_tiles: Inputs = {"pixel_values": noise((batch, each, tiles, c, height, width), fresh())}
        yield made_tiles | {"aspect_ratio_ids": torch.ones(batch, each, dtype=torch.long), "aspect_ratio_mask": mask}
    # The config's own size first; then sizes that coarser pyramids need.
    steps = [sizes(facts, request, total, p)]
    if not request.image_sizes:
        steps += [[(side, side)] * total for side in (_SIDE, 2 * _SIDE, 4 * _SIDE)]
    for found in steps:
        height, width = _same_size(found)
        flat: Inputs = {pixels: noise((total, c, height, width), fresh())}
        crops: Inputs = {
            pixels: noise((total, 2, c, height, width), fresh()),
            "image_sizes": torch.tensor([[height, width]] * total),
        }
        stacked: Inputs = {pixels: noise((batch, max(1, each), c, height, width), fresh())}
        if facts.takes("high_res_pixel_values"):
            flat["high_res_pixel_values"] = noise((total, c, height, width), fresh())
        if facts.takes("pixel_mask") and facts.find("image_token_id", "image_token_index") is None:
            yield flat | {"pixel_mask": torch.ones(total, height, width, dtype=torch.long)}
        yield flat
        if facts.takes("image_sizes"):
            yield flat | {"image_sizes": torch.tensor([[height, width]] * total)}
        yield stacked
        if facts.takes("pixel_attention_mask"):
            yield stacked | {"pixel_attention_mask": torch.ones(batch, max(1, each), dtype=torch.bool)}
        if facts.takes("image_sizes"):
            yield crops
            yield {**crops, pixels: noise((total, 3, c, height, width), fresh())}
            yield {**crops, pixels: noise((total, 5, c, height, width), fresh())}
        if facts.takes("image_num_crops", "num_local_patches"):
            yield stacked | {"num_local_patches": torch.zeros(total, dtype=torch.long)}
        frames = first(facts.find("num_frames", "frames_per_clip"), 0)
        if facts.takes("input_ids") and frames:
            yield {pixels: noise((batch, frames, c, height, width), fresh())}
        if not facts.takes("input_ids", "decoder_input_ids") and pixels == "pixel_values":
            frames = frames or request.frames
            yield {pixels: noise((total, frames, c, height, width), fresh())}
            yield {pixels: noise((total, 2, c, height, width), fresh())}
        if facts.takes("flattened_patches"):
            rows = torch.cartesian_prod(torch.arange(1, 5), torch.arange(1, 5)).float()[None].expand(total, -1, -1)
            yield {pixels: torch.cat([rows, noise((total, 16, c * p * p), fresh())], -1)}
    if not named and not request.image_sizes:
        made = grids(facts, request, 1)
        yield {pixels: torch.stack([packed(facts, made, fresh())] * total)}


def _patch_lists(
    facts: Facts, request: Request, total: int, c: int, p: int, pixels: str, fresh: Any
) -> Iterator[Inputs]:
    """Patches of each image in a row of its own [images, patches, pixels of a patch], with where they're from."""
    found = (
        sizes(facts, request, total, p * merge(facts))
        if request.image_sizes
        else [(4 * p * merge(facts), 4 * p * merge(facts))] * total
    )
    shapes = torch.tensor([[height // p, width // p] for height, width in found])
    longest = int(shapes.prod(-1).max())
    mask = (torch.arange(longest)[None] < shapes.prod(-1)[:, None]).long()
    positions = torch.full((total, longest, 2), -1)
    for image, (rows, columns) in enumerate(shapes.tolist()):
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        positions[image, : rows * columns] = grid.flip(-1)
    made: Inputs = {pixels: noise((total, longest, c * p * p), fresh())}
    for name in ("spatial_shapes", "patches_grid", "tgt_sizes", "target_sizes"):
        if facts.takes(name):
            made[name] = shapes
    for name in ("pixel_position_ids", "image_position_ids"):
        if facts.takes(name):
            made[name] = positions
    if facts.takes("pixel_attention_mask"):
        made["pixel_attention_mask"] = mask
    yield made
    flat = noise((1, c, p, p * int(shapes.prod(-1).sum())), fresh())
    yield made | {pixels: flat}


def video_inputs(facts: Facts, request: Request, seed: int) -> Iterator[Inputs]:
    """What the videos of all samples may look like to the model."""
    generator = torch.Generator().manual_seed(seed + 2)
    total = request.batch * max(1, request.videos)
    if facts.takes("video_grid_thw"):
        temporal = first(facts.find("temporal_patch_size", within="vision"), 1)
        grid = grids(facts, request, total, max(1, request.frames // temporal))
        made: Inputs = {"pixel_values_videos": packed(facts, grid, generator), "video_grid_thw": grid}
        if facts.takes("video_merge_sizes"):
            made["video_merge_sizes"] = torch.full((total,), merge(facts))
        yield made
        return
    height, width = _same_size(sizes(facts, request, total, patch(facts)))
    frames = first(facts.find("num_frames", "frames_per_clip"), request.frames)
    yield {"pixel_values_videos": noise((total, frames, channels(facts), height, width), generator)}
