# SPDX-License-Identifier: Apache-2.0
# Written by vgen. Do not edit: `vgen build qwen2` writes it again.
"""Compiled subclasses of Transformers' qwen2 models."""

from vgen.runtime import require_upstream

# Before the classes are made: they stand on upstream classes, whose source must be the one that vgen read.
require_upstream(__name__, __file__)

from .modeling_qwen2 import (
    Qwen2ForCausalLM,
    Qwen2ForQuestionAnswering,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
)

__all__ = [
    "Qwen2ForCausalLM",
    "Qwen2ForQuestionAnswering",
    "Qwen2ForSequenceClassification",
    "Qwen2ForTokenClassification",
    "Qwen2Model",
]
