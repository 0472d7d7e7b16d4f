# SPDX-License-Identifier: Apache-2.0
# Written by vgen. Do not edit: `vgen build qwen2_5_vl` writes it again.
"""Compiled subclasses of Transformers' qwen2_5_vl models."""

from vgen.runtime import require_upstream

# Before the classes are made: they stand on upstream classes, whose source must be the one that vgen read.
require_upstream(__name__, __file__)

from .modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2_5_VLTextModel,
)

__all__ = [
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLModel",
    "Qwen2_5_VLTextModel",
    "Qwen2_5_VisionTransformerPretrainedModel",
]
