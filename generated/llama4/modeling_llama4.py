# SPDX-License-Identifier: Apache-2.0
# Copyright 2025 The LLAMA4 and HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/llama4/modeling_llama4.py. Do not edit: `vgen build llama4`
# writes it again, `vgen explain llama4` says why each class is here.
"""Compiled subclasses of Transformers' llama4 models."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.modeling_outputs import BaseModelOutputWithPooling, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama4 import modeling_llama4 as upstream
from transformers.models.llama4.configuration_llama4 import Llama4Config, Llama4TextConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role, grouped_attention, tensor


class Llama4TextAttention(upstream.Llama4TextAttention):
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[FlashAttentionKwargs],
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

        query_states = self.q_proj(hidden_states).view(hidden_shape)
        key_states = self.k_proj(hidden_states).view(*input_shape, -1, self.head_dim)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

        if self.use_rope:  # the 16E model skips rope for long context on certain layers
            query_states, key_states = upstream.apply_rotary_emb(
                query_states, key_states, position_embeddings.to(query_states.device)
            )

        if hasattr(self, "qk_norm"):  # the 128E model does not use qk_norm
            query_states = self.qk_norm(query_states)
            key_states = self.qk_norm(key_states)

        # Use temperature tuning from https://huggingface.co/papers/2501.19399) to NoROPE layers
        if self.attn_temperature_tuning and not self.use_rope:
            past_seen_tokens = past_key_values.get_seq_length(self.layer_idx) if past_key_values is not None else 0
            positions = torch.arange(hidden_states.shape[1], device=hidden_states.device) + past_seen_tokens
            attn_scales = (
                torch.log1p(torch.floor((positions.float() + 1.0) / self.floor_scale)) * self.attn_scale + 1.0
            )
            attn_scales = attn_scales.view((1, input_shape[-1], 1, 1)).expand((*input_shape, 1, 1))  # batch size > 1
            query_states = (query_states * attn_scales).to(query_states.dtype)

        query_states = query_states.transpose(1, 2)
        key_states = key_states.transpose(1, 2)

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
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            **kwargs,
        )

        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Llama4TextDecoderLayer(upstream.Llama4TextDecoderLayer):
    def __init__(self, config, layer_idx):
        super(upstream.Llama4TextDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size
        self.layer_idx = layer_idx
        self.self_attn = Llama4TextAttention(config, layer_idx)
        self.is_moe_layer = layer_idx in config.moe_layers
        if self.is_moe_layer:  # the 128E model interleaves dense / sparse
            self.feed_forward = upstream.Llama4TextMoe(config)
        else:
            self.feed_forward = upstream.Llama4TextMLP(config, intermediate_size=config.intermediate_size_mlp)

        self.input_layernorm = upstream.Llama4TextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = upstream.Llama4TextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Llama4TextModel(AsUpstream, Compiled, upstream.Llama4TextModel):
    """Decoder region. Upstream: modeling_llama4.py:475."""

    region = Region(
        "llama4.decoder",
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

    def __init__(self, config: Llama4TextConfig):
        super(upstream.Llama4TextModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [Llama4TextDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = upstream.Llama4TextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = upstream.Llama4TextRotaryEmbedding(config=config)
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
    ) -> tuple | MoeModelOutputWithPast:
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
    ) -> tuple | MoeModelOutputWithPast:
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class Llama4ForCausalLM(AsUpstream, upstream.Llama4ForCausalLM):
    def __init__(self, config: Llama4TextConfig):
        super(upstream.Llama4ForCausalLM, self).__init__(config)
        self.model = Llama4TextModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

        # Initialize weights and apply final processing
        self.post_init()


class Llama4VisionModel(AsUpstream, Compiled, upstream.Llama4VisionModel):
    """Encoder region, compiled if `compile_mm_encoder` is set. Upstream: modeling_llama4.py:1011."""

    region = Region(
        "llama4.encoder",
        role=Role.ENCODER,
        contract=Contract(
            pixel_values=tensor("batch_size_times_num_tiles", None, "height", "width"),
        ),
    )

    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        if not self.region.active(self):
            return super().forward(
                pixel_values=pixel_values,
                attention_mask=attention_mask,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=return_dict,
                **kwargs,
            )
        return self.region(
            self,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            **kwargs,
        )

    def core(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        return super().forward(
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            **kwargs,
        )


class Llama4ForConditionalGeneration(AsUpstream, upstream.Llama4ForConditionalGeneration):
    def __init__(self, config: Llama4Config):
        super(upstream.Llama4ForConditionalGeneration, self).__init__(config)
        self.vision_model = Llama4VisionModel(config.vision_config)

        self.multi_modal_projector = upstream.Llama4MultiModalProjector(config)
        self.language_model = Llama4ForCausalLM(config.text_config)
        self.vocab_size = config.text_config.vocab_size
        if hasattr(self.config, "pad_token_id"):
            self.pad_token_id = self.config.pad_token_id
        else:
            self.pad_token_id = self.config.text_config.pad_token_id or -1

        self.post_init()


__all__ = [
    "Llama4ForCausalLM",
    "Llama4ForConditionalGeneration",
    "Llama4TextModel",
    "Llama4VisionModel",
]
