# SPDX-License-Identifier: Apache-2.0
# Written by vgen. Do not edit: `vgen build qwen3_vl_moe` writes it again.
"""Compiled subclasses of Transformers' qwen3_vl_moe models."""

from vgen.runtime import require_upstream

# Before the classes are made: they stand on upstream classes, whose source must be the one that vgen read.
require_upstream(__name__, __file__)

from .modeling_qwen3_vl_moe import (
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLMoeModel,
    Qwen3VLMoeTextModel,
    Qwen3VLMoeVisionModel,
)

__all__ = [
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3VLMoeModel",
    "Qwen3VLMoeTextModel",
    "Qwen3VLMoeVisionModel",
]
