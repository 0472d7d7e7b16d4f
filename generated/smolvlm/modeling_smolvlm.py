# SPDX-License-Identifier: Apache-2.0
# Copyright 2025 the HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/smolvlm/modeling_smolvlm.py. Do not edit: `vgen build smolvlm`
# writes it again, `vgen explain smolvlm` says why each class is here.
"""Compiled subclasses of Transformers' smolvlm models."""

import torch
from torch import nn
from transformers.generation import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto import AutoModel
from transformers.models.smolvlm import modeling_smolvlm as upstream
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role, child_from_config


class SmolVLMVisionTransformer(AsUpstream, Compiled, upstream.SmolVLMVisionTransformer):
    """Encoder region, compiled if `compile_mm_encoder` is set. Upstream: modeling_smolvlm.py:305."""

    region = Region(
        "smolvlm.encoder",
        role=Role.ENCODER,
        contract=Contract(),
        records_outputs=True,
    )

    def forward(
        self,
        pixel_values,
        patch_attention_mask: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        if not self.region.active(self):
            return super().forward(pixel_values=pixel_values, patch_attention_mask=patch_attention_mask, **kwargs)
        return self.region(self, pixel_values=pixel_values, patch_attention_mask=patch_attention_mask, **kwargs)

    def core(
        self,
        pixel_values,
        patch_attention_mask: torch.BoolTensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        return super().forward(pixel_values=pixel_values, patch_attention_mask=patch_attention_mask, **kwargs)


class SmolVLMModel(AsUpstream, upstream.SmolVLMModel):
    def __init__(self, config: SmolVLMConfig):
        super(upstream.SmolVLMModel, self).__init__(config)
        self.padding_idx = self.config.text_config.pad_token_id
        self.vocab_size = self.config.text_config.vocab_size

        self.vision_model = SmolVLMVisionTransformer._from_config(config.vision_config)
        self.connector = upstream.SmolVLMConnector(config)
        self.text_model = child_from_config(AutoModel, config.text_config, package=__package__)

        self.image_seq_len = int(
            ((config.vision_config.image_size // config.vision_config.patch_size) ** 2) / (config.scale_factor**2)
        )
        self.image_token_id = self.config.image_token_id

        self.post_init()


class SmolVLMForConditionalGeneration(AsUpstream, upstream.SmolVLMForConditionalGeneration):
    def __init__(self, config: SmolVLMConfig):
        super(upstream.SmolVLMForConditionalGeneration, self).__init__(config)
        self.model = SmolVLMModel(config)
        self.image_token_id = self.config.image_token_id
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.vocab_size = config.text_config.vocab_size
        self.model.text_model.generation_config = GenerationConfig.from_model_config(config)

        # Initialize weights and apply final processing
        self.post_init()


__all__ = [
    "SmolVLMForConditionalGeneration",
    "SmolVLMModel",
    "SmolVLMVisionTransformer",
]
