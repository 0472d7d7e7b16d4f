# SPDX-License-Identifier: Apache-2.0
# Written by vgen. Do not edit: `vgen build glm4v` writes it again.
"""Compiled subclasses of Transformers' glm4v models."""

from vgen.runtime import require_upstream

# Before the classes are made: they stand on upstream classes, whose source must be the one that vgen read.
require_upstream(__name__, __file__)

from .modeling_glm4v import (
    Glm4vForConditionalGeneration,
    Glm4vModel,
    Glm4vTextModel,
    Glm4vVisionModel,
)

__all__ = [
    "Glm4vForConditionalGeneration",
    "Glm4vModel",
    "Glm4vTextModel",
    "Glm4vVisionModel",
]
