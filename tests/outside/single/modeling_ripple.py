"""A text decoder in Llama's style: its own layer and normalisation, Llama's attention and the rest inherited."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
)


class RippleConfig(LlamaConfig):
    model_type = "ripple"

    def __init__(self, residual_scale: float = 0.5, **kwargs):
        self.residual_scale = residual_scale
        super().__init__(**kwargs)


class RippleAttention(LlamaAttention):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.gain = nn.Parameter(torch.full((config.hidden_size,), 0.9))

    def forward(self, hidden_states, **kwargs):
        attended, weights = super().forward(hidden_states, **kwargs)
        return attended * self.gain, weights


class RippleDecoderLayer(modeling_llama.LlamaDecoderLayer):
    def __init__(self, config: RippleConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.self_attn = RippleAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.scale = config.residual_scale

    def forward(self, hidden_states: torch.Tensor, **kwargs):
        return hidden_states + self.scale * (super().forward(hidden_states, **kwargs) - hidden_states)


class RippleModel(LlamaModel):
    config_class = RippleConfig

    def __init__(self, config: RippleConfig):
        super(RippleModel, self).__init__(config)
        self.layers = nn.ModuleList([RippleDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()


class RippleForCausalLM(LlamaForCausalLM):
    config_class = RippleConfig

    def __init__(self, config: RippleConfig):
        super(RippleForCausalLM, self).__init__(config)
        self.model = RippleModel(config)
        self.post_init()


class RippleBaseline(LlamaForCausalLM):
    """Keeps Llama's own model below its head."""

    config_class = RippleConfig


class RippleForSequenceClassification(modeling_llama.LlamaForSequenceClassification):
    """Asks Transformers' auto classes for the model below its head."""

    config_class = RippleConfig
