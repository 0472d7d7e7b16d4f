# SPDX-License-Identifier: Apache-2.0
# Written by vgen. Do not edit: `vgen build gemma3` writes it again.
"""Compiled subclasses of Transformers' gemma3 models."""

from vgen.runtime import require_upstream

# Before the classes are made: they stand on upstream classes, whose source must be the one that vgen read.
require_upstream(__name__, __file__)

from .modeling_gemma3 import (
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3ForSequenceClassification,
    Gemma3Model,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
)

__all__ = [
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma3ForSequenceClassification",
    "Gemma3Model",
    "Gemma3TextForSequenceClassification",
    "Gemma3TextModel",
]
