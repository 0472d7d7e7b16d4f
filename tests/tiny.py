"""Tiny random models, as upstream makes them and as generated, with inputs for them."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING

import vgen.runtime as runtime

VOCABULARY = 200
IMAGE, VIDEO, VISION_START, VISION_END = 151, 152, 153, 154
PLAIN = 140
"""Ids below this one are text and nothing else."""

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 199,
}
SPECIFIC: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_5_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}},
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "spatial_merge_size": 2,
        },
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    },
    "internvl": {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [28, 28],
            "patch_size": [7, 7],
        },
        "image_token_id": IMAGE,
        "image_seq_length": 4,
    },
}
ENTRIES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
}
Grid = Sequence[tuple[int, int, int]]


def config(model: str, *, kv_heads: int = 2, **changes: Any) -> Any:
    """A new tiny config; `changes` are for its top level.

    With fewer key-value heads than the 4 query heads, upstream's SDPA attention takes another kernel under tracing
    than in eager where gradients are asked for, so only `kv_heads=4` is equal to the last bit there.
    """
    fields = copy.deepcopy(SPECIFIC.get(model, {}))
    text = fields.get("text_config", fields)
    text.update(TEXT | text | {"num_key_value_heads": kv_heads})
    return CONFIG_MAPPING[model](**(fields | changes))


def generated_class(model: str, package: str = "vgen.generated", name: str | None = None) -> Any:
    return getattr(importlib.import_module(f"{package}.{model}"), name or ENTRIES[model])


def pair(
    model: str, package: str = "vgen.generated", *, changes: Mapping[str, Any] | None = None, **options: Any
) -> tuple[Any, Any]:
    """Upstream's model and the generated one with the same weights, in eval mode. The backend is "eager" by default."""
    torch.manual_seed(0)
    upstream = getattr(transformers, ENTRIES[model])(config(model, **(changes or {}))).eval()
    with runtime.options(**{"backend": "eager"} | options):
        generated = generated_class(model, package)(config(model, **(changes or {}))).eval()
    generated.load_state_dict(upstream.state_dict())
    return upstream, generated


def text(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random ids of that shape."""
    return torch.randint(3, PLAIN, shape, generator=torch.Generator().manual_seed(seed))


def patches(grid: Grid, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed image or video patches of Qwen2.5-VL, (patches, 3 · 2 · 14 · 14), and their grid."""
    count = sum(t * h * w for t, h, w in grid)
    return torch.randn(count, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(seed)), torch.tensor(grid)


def vision_prompt(images: Grid = (), videos: Grid = (), *, words: int = 5, rows: int = 1) -> dict[str, torch.Tensor]:
    """The inputs of Qwen2.5-VL for a prompt with images, then videos, words between them; `rows` equal-sized prompts."""
    inputs: dict[str, torch.Tensor] = {}
    row: list[torch.Tensor] = [text(words)]
    for token, grids in ((IMAGE, images), (VIDEO, videos)):
        for t, h, w in grids:
            row += [torch.tensor([VISION_START]), torch.full((t * h * w // 4,), token), torch.tensor([VISION_END])]
            row += [text(words, seed=h)]
    inputs["input_ids"] = torch.cat(row).repeat(rows, 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    ids = inputs["input_ids"]
    inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    if images:
        inputs["pixel_values"], inputs["image_grid_thw"] = patches([*images] * rows)
    if videos:
        inputs["pixel_values_videos"], inputs["video_grid_thw"] = patches([*videos] * rows, seed=3)
        inputs["second_per_grid_ts"] = torch.ones(len(videos) * rows)
    return inputs


def internvl_prompt(images: int = 2, *, words: int = 5) -> dict[str, torch.Tensor]:
    """The inputs of InternVL for one prompt with `images` images of 28 × 28, which are 4 tokens each."""
    row = [text(words)]
    for index in range(images):
        row += [torch.full((4,), IMAGE), text(words, seed=index)]
    ids = torch.cat(row).unsqueeze(0)
    pixels = torch.randn(images, 3, 28, 28, generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def prompt(model: str) -> dict[str, torch.Tensor]:
    """Some inputs with everything that the model takes."""
    if model == "qwen2_5_vl":
        return vision_prompt(images=[(1, 4, 4), (1, 6, 8)], videos=[(2, 4, 6)])
    if model == "internvl":
        return internvl_prompt()
    ids = text(2, 11)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded(model: str, side: str) -> dict[str, torch.Tensor]:
    """Two text prompts of different lengths, the shorter one padded on that side."""
    ids = text(2, 13)
    mask = torch.ones_like(ids)
    mask[1, : 5 if side == "left" else None] = 0
    if side == "right":
        mask[1] = 1
        mask[1, -5:] = 0
    ids[mask == 0] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model == "qwen2_5_vl":
        inputs["mm_token_type_ids"] = torch.zeros_like(ids, dtype=torch.int32)
    return inputs


def fallbacks() -> dict[str, dict[str, int]]:
    """The regions that ran uncompiled since the counters were reset, with reasons."""
    return {tag: dict(each.fallbacks) for tag, each in runtime.counters().items() if each.fallbacks}


def compiles() -> dict[str, int]:
    """How often each region compiled since the counters were reset."""
    return {tag: each.compiles for tag, each in runtime.counters().items()}
