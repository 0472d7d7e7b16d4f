# SPDX-License-Identifier: Apache-2.0
# Written by vgen. Do not edit: `vgen build pixtral` writes it again.
"""Compiled subclasses of Transformers' pixtral models."""

from vgen.runtime import require_upstream

# Before the classes are made: they stand on upstream classes, whose source must be the one that vgen read.
require_upstream(__name__, __file__)

from .modeling_pixtral import (
    PixtralVisionModel,
)

__all__ = [
    "PixtralVisionModel",
]
