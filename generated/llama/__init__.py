# SPDX-License-Identifier: Apache-2.0
# Written by vgen. Do not edit: `vgen build llama` writes it again.
"""Compiled subclasses of Transformers' llama models."""

from vgen.runtime import require_upstream

# Before the classes are made: they stand on upstream classes, whose source must be the one that vgen read.
require_upstream(__name__, __file__)

from .modeling_llama import (
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

__all__ = [
    "LlamaForCausalLM",
    "LlamaForQuestionAnswering",
    "LlamaForSequenceClassification",
    "LlamaForTokenClassification",
    "LlamaModel",
]
