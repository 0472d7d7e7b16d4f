"""The models that are timed: real sizes, tiny ones for a dry run, and inputs. Weights are random."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING

Inputs = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model at the sizes of a published checkpoint.

    Attributes:
        package: Its folder in Transformers and in `vgen.generated`.
        entry: The class that a user loads.
        real: The config at real sizes.
        tiny: The same with sizes for a dry run on a CPU.
        encoder: The way from the model to its encoder; None if it has none.
        shapes: The encoder's inputs by name, at real sizes; made smaller in a dry run.
        decodes: Whether text is generated.
    """

    package: str
    entry: str
    real: Mapping[str, Any]
    tiny: Mapping[str, Any]
    encoder: str | None
    shapes: Mapping[str, Callable[[Any, bool], Inputs]] = field(default_factory=dict)
    decodes: bool = True

    def config(self, is_tiny: bool) -> Any:
        return CONFIG_MAPPING[self.package](**(self.tiny if is_tiny else self.real))

    def entry_class(self, generated: str | None) -> Any:
        """The class of a package of packages, or upstream's."""
        module = importlib.import_module(f"{generated}.{self.package}") if generated else transformers
        return getattr(module, self.entry)

    def encoder_of(self, model: Any) -> Any:
        assert self.encoder is not None
        for name in self.encoder.split("."):
            model = getattr(model, name)
        return model


def packed(*images: tuple[int, int, int]) -> Callable[[Any, bool], Inputs]:
    """Packed patches of images, given as frames, height and width in pixels."""

    def make(config: Any, is_tiny: bool) -> Inputs:
        vision, merge = config.vision_config, config.vision_config.spatial_merge_size
        step = vision.patch_size * merge * (8 if is_tiny else 1)
        grid = [(frames, merge * max(h // step, 1), merge * max(w // step, 1)) for frames, h, w in images]
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        return {"hidden_states": _random(sum(map(math.prod, grid)), width), "grid_thw": torch.tensor(grid)}

    return make


def _tiles(count: int) -> Callable[[Any, bool], Inputs]:
    return lambda config, _: {"pixel_values": _random(count, 3, *config.vision_config.image_size)}


def _spectrograms(count: int) -> Callable[[Any, bool], Inputs]:
    def make(config: Any, _: bool) -> Inputs:
        return {"input_features": _random(count, config.num_mel_bins, 2 * config.max_source_positions)}

    return make


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


_IMAGES = {
    "1x1036²": packed((1, 1036, 1036)),
    "8x448²": packed(*[(1, 448, 448)] * 8),
    "1x224²": packed((1, 224, 224)),
    "1x672x448": packed((1, 672, 448)),
    "video 8x448²": packed((8, 448, 448)),
}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TINY_TEXT = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    **_IDS,
}
_MULTIMODAL = {"image_token_id": 201, "video_token_id": 202, "vision_start_token_id": 203, "vision_end_token_id": 204}
_QWEN2_5_TEXT = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    **_IDS,
}
_QWEN2_5_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
}
_QWEN3_TEXT = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6},
    **_IDS,
}
_QWEN3_VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "deepstack_visual_indexes": [5, 11, 17],
}

MODELS = {
    "qwen2.5-vl-3b": Model(
        package="qwen2_5_vl",
        entry="Qwen2_5_VLForConditionalGeneration",
        real={
            "text_config": _QWEN2_5_TEXT,
            "vision_config": _QWEN2_5_VISION,
            "tie_word_embeddings": True,
            **{name: 151600 + value for name, value in _MULTIMODAL.items()},
        },
        tiny={
            "text_config": _TINY_TEXT
            | {"rope_parameters": _QWEN2_5_TEXT["rope_parameters"] | {"mrope_section": [2, 3, 3]}},
            "vision_config": _QWEN2_5_VISION
            | {"depth": 2, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "out_hidden_size": 64}
            | {"fullatt_block_indexes": [1]},
            **_MULTIMODAL,
        },
        encoder="model.visual",
        shapes=_IMAGES,
    ),
    "internvl3-2b": Model(
        package="internvl",
        entry="InternVLForConditionalGeneration",
        real={
            "text_config": {
                "model_type": "qwen2",
                "vocab_size": 151674,
                "hidden_size": 1536,
                "intermediate_size": 8960,
                "num_hidden_layers": 28,
                "num_attention_heads": 12,
                "num_key_value_heads": 2,
                **_IDS,
            },
            "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
            "image_token_id": 151667,
        },
        tiny={
            "text_config": {"model_type": "qwen2", **_TINY_TEXT},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": [28, 28],
                "patch_size": [7, 7],
            },
            "image_token_id": 201,
            "image_seq_length": 4,
        },
        encoder="model.vision_tower",
        shapes={f"{count} tiles": _tiles(count) for count in (13, 8, 4, 2, 1)},
    ),
    "qwen3-vl-2b": Model(
        package="qwen3_vl",
        entry="Qwen3VLForConditionalGeneration",
        real={
            "text_config": _QWEN3_TEXT,
            "vision_config": _QWEN3_VISION,
            "tie_word_embeddings": True,
            **{name: 151600 + value for name, value in _MULTIMODAL.items()},
        },
        tiny={
            "text_config": _TINY_TEXT
            | {"head_dim": 16, "rope_parameters": _QWEN3_TEXT["rope_parameters"] | {"mrope_section": [4, 2, 2]}},
            "vision_config": _QWEN3_VISION
            | {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
            | {"deepstack_visual_indexes": [0]},
            **_MULTIMODAL,
        },
        encoder="model.visual",
        shapes=_IMAGES,
    ),
    "llama-3.2-1b": Model(
        package="llama",
        entry="LlamaForCausalLM",
        real={
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
            **_IDS,
        },
        tiny=_TINY_TEXT,
        encoder=None,
    ),
    "whisper-large-v3": Model(
        package="whisper",
        entry="WhisperForConditionalGeneration",
        real={
            "d_model": 1280,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "decoder_layers": 1,
            "decoder_attention_heads": 20,
            "decoder_ffn_dim": 5120,
            "num_mel_bins": 128,
        },
        tiny={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 48,
            "num_mel_bins": 16,
            "max_source_positions": 40,
        },
        encoder="model.encoder",
        shapes={f"{count} x 30 s": _spectrograms(count) for count in (1, 2, 4, 8, 16)},
        decodes=False,
    ),
}
