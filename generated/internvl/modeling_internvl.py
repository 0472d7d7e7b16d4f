# SPDX-License-Identifier: Apache-2.0
# Copyright 2025 HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/internvl/modeling_internvl.py. Do not edit: `vgen build internvl`
# writes it again, `vgen explain internvl` says why each class is here.
"""Compiled subclasses of Transformers' internvl models."""

import torch
from torch import nn
from transformers.models.auto import AutoModel
from transformers.models.internvl import modeling_internvl as upstream
from transformers.models.internvl.configuration_internvl import InternVLConfig

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role, child_from_config, tensor


class InternVLVisionModel(AsUpstream, Compiled, upstream.InternVLVisionModel):
    """Encoder region, compiled if `compile_mm_encoder` is set. Upstream: modeling_internvl.py:428."""

    region = Region(
        "internvl.encoder",
        role=Role.ENCODER,
        contract=Contract(
            pixel_values=tensor("batch_size", None, "image_height", "image_width"),
            bool_masked_pos=tensor("batch_size", "num_patches"),
        ),
        records_outputs=True,
    )

    def forward(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.BoolTensor | None = None, **kwargs
    ) -> tuple | upstream.InternVLVisionModelOutputWithPooling:
        if not self.region.active(self):
            return super().forward(pixel_values=pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        return self.region(self, pixel_values=pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)

    def core(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None,
        **kwargs,
    ) -> tuple | upstream.InternVLVisionModelOutputWithPooling:
        return super().forward(pixel_values=pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)


class InternVLModel(AsUpstream, upstream.InternVLModel):
    def __init__(self, config: InternVLConfig):
        super(upstream.InternVLModel, self).__init__(config)
        self.vision_tower = child_from_config(AutoModel, config.vision_config, package=__package__)

        self.multi_modal_projector = upstream.InternVLMultiModalProjector(config)
        self.language_model = child_from_config(AutoModel, config.text_config, package=__package__)
        self.post_init()


class InternVLForConditionalGeneration(AsUpstream, upstream.InternVLForConditionalGeneration):
    def __init__(self, config: InternVLConfig):
        super(upstream.InternVLForConditionalGeneration, self).__init__(config)
        self.model = InternVLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


__all__ = [
    "InternVLForConditionalGeneration",
    "InternVLModel",
    "InternVLVisionModel",
]
