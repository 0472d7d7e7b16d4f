# SPDX-License-Identifier: Apache-2.0
# Written by vgen. Do not edit: `vgen build whisper` writes it again.
"""Compiled subclasses of Transformers' whisper models."""

from vgen.runtime import require_upstream

# Before the classes are made: they stand on upstream classes, whose source must be the one that vgen read.
require_upstream(__name__, __file__)

from .modeling_whisper import (
    WhisperForAudioClassification,
    WhisperForCausalLM,
    WhisperForConditionalGeneration,
    WhisperModel,
)

__all__ = [
    "WhisperForAudioClassification",
    "WhisperForCausalLM",
    "WhisperForConditionalGeneration",
    "WhisperModel",
]
