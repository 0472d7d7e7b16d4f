# SPDX-License-Identifier: Apache-2.0
# Written by vgen. Do not edit: `vgen build qwen2_vl` writes it again.
"""Compiled subclasses of Transformers' qwen2_vl models."""

from vgen.runtime import require_upstream

# Before the classes are made: they stand on upstream classes, whose source must be the one that vgen read.
require_upstream(__name__, __file__)

from .modeling_qwen2_vl import (
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
    Qwen2VLTextModel,
)

__all__ = [
    "Qwen2VLForConditionalGeneration",
    "Qwen2VLModel",
    "Qwen2VLTextModel",
]
