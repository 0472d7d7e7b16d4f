# SPDX-License-Identifier: Apache-2.0
# Written by vgen. Do not edit: `vgen build llama4` writes it again.
"""Compiled subclasses of Transformers' llama4 models."""

from vgen.runtime import require_upstream

# Before the classes are made: they stand on upstream classes, whose source must be the one that vgen read.
require_upstream(__name__, __file__)

from .modeling_llama4 import (
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
    Llama4TextModel,
    Llama4VisionModel,
)

__all__ = [
    "Llama4ForCausalLM",
    "Llama4ForConditionalGeneration",
    "Llama4TextModel",
    "Llama4VisionModel",
]
