# SPDX-License-Identifier: Apache-2.0
# Copyright 2025 Google Inc. HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/gemma3/modeling_gemma3.py. Do not edit: `vgen build gemma3`
# writes it again, `vgen explain gemma3` says why each class is here.
"""Compiled subclasses of Transformers' gemma3 models."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto import AutoModel
from transformers.models.gemma3 import modeling_gemma3 as upstream
from transformers.models.gemma3.configuration_gemma3 import Gemma3Config, Gemma3TextConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role, child_from_config, grouped_attention, tensor


class Gemma3Attention(upstream.Gemma3Attention):
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor] | None]:
        if not torch.compiler.is_compiling():
            return super().forward(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )

        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)

        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

        query_states = self.q_norm(query_states)
        key_states = self.k_norm(key_states)

        cos, sin = position_embeddings
        query_states, key_states = upstream.apply_rotary_pos_emb(query_states, key_states, cos, sin)

        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)

        # vgen grouped-attention: one new token attends as it does in eager, by a branch that upstream leaves
        # out of graphs (sdpa_attention.py:132).
        attention_interface: Callable = grouped_attention(
            ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, upstream.eager_attention_forward)
        )

        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )

        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Gemma3DecoderLayer(upstream.Gemma3DecoderLayer):
    def __init__(self, config: Gemma3TextConfig, layer_idx: int):
        super(upstream.Gemma3DecoderLayer, self).__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.layer_idx = layer_idx
        self.self_attn = Gemma3Attention(config=config, layer_idx=layer_idx)
        self.mlp = upstream.Gemma3MLP(config)
        self.input_layernorm = upstream.Gemma3RMSNorm(self.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = upstream.Gemma3RMSNorm(self.hidden_size, eps=config.rms_norm_eps)
        self.pre_feedforward_layernorm = upstream.Gemma3RMSNorm(self.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = upstream.Gemma3RMSNorm(self.hidden_size, eps=config.rms_norm_eps)


class Gemma3TextModel(AsUpstream, Compiled, upstream.Gemma3TextModel):
    """Decoder region. Upstream: modeling_gemma3.py:474."""

    region = Region(
        "gemma3.decoder",
        role=Role.DECODER,
        contract=Contract(
            input_ids=tensor("batch_size", "sequence_length"),
            attention_mask=tensor("batch_size", "kv_length"),
            position_ids=tensor("batch_size", "sequence_length"),
            inputs_embeds=tensor("batch_size", "sequence_length", None),
        ),
        rotary=True,
        records_outputs=True,
        plain_positions=True,
    )

    def __init__(self, config: Gemma3TextConfig):
        super(upstream.Gemma3TextModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        # Gemma3 downcasts the below to bfloat16, causing sqrt(3072)=55.4256 to become 55.5. See https://github.com/huggingface/transformers/pull/29402
        self.embed_tokens = upstream.Gemma3TextScaledWordEmbedding(
            config.vocab_size, config.hidden_size, self.padding_idx, embed_scale=self.config.hidden_size**0.5
        )
        self.layers = nn.ModuleList(
            [Gemma3DecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = upstream.Gemma3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = upstream.Gemma3RotaryEmbedding(config)
        self.gradient_checkpointing = False

        # Initialize weights and apply final processing
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        if not self.region.active(self):
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
        return self.region(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def core(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.LongTensor | None,
        past_key_values: Cache | None,
        inputs_embeds: torch.Tensor | None,
        use_cache: bool | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class Gemma3ForCausalLM(AsUpstream, upstream.Gemma3ForCausalLM):
    def __init__(self, config: Gemma3TextConfig):
        super(upstream.Gemma3ForCausalLM, self).__init__(config)
        self.model = Gemma3TextModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

        # Initialize weights and apply final processing
        self.post_init()


class Gemma3Model(AsUpstream, upstream.Gemma3Model):
    def __init__(self, config: Gemma3Config):
        super(upstream.Gemma3Model, self).__init__(config)
        self.vision_tower = child_from_config(AutoModel, config.vision_config, package=__package__)
        self.multi_modal_projector = upstream.Gemma3MultiModalProjector(config)
        self.vocab_size = config.text_config.vocab_size
        self.language_model = child_from_config(AutoModel, config.text_config, package=__package__)
        self.post_init()


class Gemma3ForConditionalGeneration(AsUpstream, upstream.Gemma3ForConditionalGeneration):
    def __init__(self, config: Gemma3Config):
        super(upstream.Gemma3ForConditionalGeneration, self).__init__(config)
        self.model = Gemma3Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


class Gemma3TextForSequenceClassification(AsUpstream, upstream.Gemma3TextForSequenceClassification):
    def __init__(self, config):
        super(GenericForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        # Similar to `self.model = AutoModel.from_config(config)` but allows to change the base model name if needed in the child class
        setattr(self, self.base_model_prefix, child_from_config(AutoModel, config, package=__package__))
        self.score = nn.Linear(config.get_text_config().hidden_size, self.num_labels, bias=False)

        # Initialize weights and apply final processing
        self.post_init()


class Gemma3ForSequenceClassification(AsUpstream, upstream.Gemma3ForSequenceClassification):
    def __init__(self, config):
        super(GenericForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        # Similar to `self.model = AutoModel.from_config(config)` but allows to change the base model name if needed in the child class
        setattr(self, self.base_model_prefix, child_from_config(AutoModel, config, package=__package__))
        self.score = nn.Linear(config.get_text_config().hidden_size, self.num_labels, bias=False)

        # Initialize weights and apply final processing
        self.post_init()


__all__ = [
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma3ForSequenceClassification",
    "Gemma3Model",
    "Gemma3TextForSequenceClassification",
    "Gemma3TextModel",
]
