# SPDX-License-Identifier: Apache-2.0
# Copyright 2021 The OpenAI Team Authors and The HuggingFace Team. All rights reserved.
#
# Written by vgen from transformers/models/clip/modeling_clip.py. Do not edit: `vgen build clip`
# writes it again, `vgen explain clip` says why each class is here.
"""Compiled subclasses of Transformers' clip models."""

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip import modeling_clip as upstream
from transformers.models.clip.configuration_clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role, tensor


class CLIPTextModel(AsUpstream, Compiled, upstream.CLIPTextModel):
    """Encoder region. Upstream: modeling_clip.py:485."""

    region = Region(
        "clip.encoder.CLIPTextModel",
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


class CLIPVisionModel(AsUpstream, Compiled, upstream.CLIPVisionModel):
    """Encoder region, compiled if `compile_mm_encoder` is set. Upstream: modeling_clip.py:585."""

    region = Region(
        "clip.encoder.CLIPVisionModel",
        role=Role.ENCODER,
        contract=Contract(
            pixel_values=tensor("batch_size", None, "image_height", "image_width"),
        ),
        records_outputs=True,
    )

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
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
        pixel_values: torch.Tensor | None,
        interpolate_pos_encoding: bool | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        return super().forward(pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)


class CLIPModel(AsUpstream, upstream.CLIPModel):
    def __init__(self, config: CLIPConfig):
        super(upstream.CLIPModel, self).__init__(config)

        text_config = config.text_config
        vision_config = config.vision_config

        self.projection_dim = config.projection_dim
        self.text_embed_dim = text_config.hidden_size
        self.vision_embed_dim = vision_config.hidden_size

        self.text_model = CLIPTextModel._from_config(text_config)
        self.vision_model = CLIPVisionModel._from_config(vision_config)

        self.visual_projection = nn.Linear(self.vision_embed_dim, self.projection_dim, bias=False)
        self.text_projection = nn.Linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(self.config.logit_scale_init_value))

        # Initialize weights and apply final processing
        self.post_init()


class CLIPTextModelWithProjection(AsUpstream, upstream.CLIPTextModelWithProjection):
    def __init__(self, config: CLIPTextConfig):
        super(upstream.CLIPTextModelWithProjection, self).__init__(config)

        self.text_model = CLIPTextModel._from_config(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

        # Initialize weights and apply final processing
        self.post_init()


class CLIPVisionModelWithProjection(AsUpstream, upstream.CLIPVisionModelWithProjection):
    def __init__(self, config: CLIPVisionConfig):
        super(upstream.CLIPVisionModelWithProjection, self).__init__(config)

        self.vision_model = CLIPVisionModel._from_config(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

        # Initialize weights and apply final processing
        self.post_init()


class CLIPForImageClassification(AsUpstream, upstream.CLIPForImageClassification):
    def __init__(self, config: CLIPConfig) -> None:
        super(upstream.CLIPForImageClassification, self).__init__(config)

        self.num_labels = config.num_labels
        self.vision_model = CLIPVisionModel._from_config(config.vision_config)

        # Classifier head
        self.classifier = (
            nn.Linear(config.vision_config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        )

        # Initialize weights and apply final processing
        self.post_init()


__all__ = [
    "CLIPForImageClassification",
    "CLIPModel",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
]
