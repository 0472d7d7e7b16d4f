# SPDX-License-Identifier: Apache-2.0
# Copyright 2024 Mistral and the HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/pixtral/modeling_pixtral.py. Do not edit: `vgen build pixtral`
# writes it again, `vgen explain pixtral` says why each class is here.
"""Compiled subclasses of Transformers' pixtral models."""

import torch
from torch import nn
from transformers.models.pixtral import modeling_pixtral as upstream
from transformers.models.pixtral.configuration_pixtral import PixtralVisionConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role


class PixtralAttentionLayer(Compiled, upstream.PixtralAttentionLayer):
    """Encoder region (each layer), compiled if `compile_mm_encoder` is set. Upstream: modeling_pixtral.py:262."""

    region = Region(
        "pixtral.encoder.block",
        role=Role.ENCODER,
        contract=Contract(),
        per_instance=False,
    )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        if not self.region.active(self):
            return super().forward(
                hidden_states=hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        return self.region(
            self,
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            **kwargs,
        )

    def core(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        return super().forward(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            **kwargs,
        )


class PixtralTransformer(upstream.PixtralTransformer):
    def __init__(self, config):
        super(upstream.PixtralTransformer, self).__init__()
        self.config = config
        self.layers = torch.nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            self.layers.append(PixtralAttentionLayer(config))
        self.gradient_checkpointing = False


class PixtralVisionModel(AsUpstream, upstream.PixtralVisionModel):
    def __init__(self, config: PixtralVisionConfig):
        super(upstream.PixtralVisionModel, self).__init__(config)
        self.config = config
        self.patch_conv = nn.Conv2d(
            in_channels=config.num_channels,
            out_channels=config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            bias=False,
        )
        self.patch_size = config.patch_size
        self.ln_pre = upstream.PixtralRMSNorm(config.hidden_size, eps=1e-5)
        self.transformer = PixtralTransformer(config)
        self.patch_positional_embedding = upstream.PixtralVisionRotaryEmbedding(config)

        self.post_init()


__all__ = [
    "PixtralVisionModel",
]
