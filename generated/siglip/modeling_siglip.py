# SPDX-License-Identifier: Apache-2.0
# Copyright 2024 Google AI and The HuggingFace Team. All rights reserved.
#
# Written by vgen from transformers/models/siglip/modeling_siglip.py. Do not edit: `vgen build siglip`
# writes it again, `vgen explain siglip` says why each class is here.
"""Compiled subclasses of Transformers' siglip models."""

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip import modeling_siglip as upstream
from transformers.models.siglip.configuration_siglip import SiglipConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role, tensor


class SiglipTextModel(AsUpstream, Compiled, upstream.SiglipTextModel):
    """Encoder region. Upstream: modeling_siglip.py:471."""

    region = Region(
        "siglip.encoder.SiglipTextModel",
        role=Role.ENCODER,
        contract=Contract(
            input_ids=tensor("batch_size", "sequence_length"),
            attention_mask=tensor("batch_size", "sequence_length"),
            position_ids=tensor("batch_size", "sequence_length"),
        ),
        records_outputs=True,
        text=True,
    )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        if not self.region.active(self):
            return super().forward(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
            )
        return self.region(
            self, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )

    def core(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)


class SiglipVisionModel(AsUpstream, Compiled, upstream.SiglipVisionModel):
    """Encoder region, compiled if `compile_mm_encoder` is set. Upstream: modeling_siglip.py:553."""

    region = Region(
        "siglip.encoder.SiglipVisionModel",
        role=Role.ENCODER,
        contract=Contract(
            pixel_values=tensor("batch_size", None, "image_height", "image_width"),
        ),
        records_outputs=True,
    )

    def forward(
        self,
        pixel_values,
        interpolate_pos_encoding: bool | None = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        if not self.region.active(self):
            return super().forward(
                pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
            )
        return self.region(
            self, pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )

    def core(
        self,
        pixel_values,
        interpolate_pos_encoding: bool | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        return super().forward(pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)


class SiglipModel(AsUpstream, upstream.SiglipModel):
    def __init__(self, config: SiglipConfig):
        super(upstream.SiglipModel, self).__init__(config)

        text_config = config.text_config
        vision_config = config.vision_config

        # First, initialize the text and vision models with proper attention implementation
        self.text_model = SiglipTextModel._from_config(text_config)
        self.vision_model = SiglipVisionModel._from_config(vision_config)

        self.logit_scale = nn.Parameter(torch.randn(1))
        self.logit_bias = nn.Parameter(torch.randn(1))

        # Initialize weights and apply final processing
        self.post_init()


class SiglipForImageClassification(AsUpstream, upstream.SiglipForImageClassification):
    def __init__(self, config: SiglipConfig) -> None:
        super(upstream.SiglipForImageClassification, self).__init__(config)

        self.num_labels = config.num_labels
        self.vision_model = SiglipVisionModel._from_config(config.vision_config)

        # Classifier head
        self.classifier = (
            nn.Linear(config.vision_config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        )

        # Initialize weights and apply final processing
        self.post_init()


__all__ = [
    "SiglipForImageClassification",
    "SiglipModel",
    "SiglipTextModel",
    "SiglipVisionModel",
]
