# SPDX-License-Identifier: Apache-2.0
# Copyright 2025 The ZhipuAI Inc. team and HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/glm4v/modeling_glm4v.py. Do not edit: `vgen build glm4v`
# writes it again, `vgen explain glm4v` says why each class is here.
"""Compiled subclasses of Transformers' glm4v models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm4v import modeling_glm4v as upstream
from transformers.models.glm4v.configuration_glm4v import Glm4vConfig, Glm4vTextConfig, Glm4vVisionConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import get_max_seqlen, is_flash_attention_requested
from transformers.vision_utils import get_vision_attention_seqlens, get_vision_position_ids

from vgen.runtime import (
    AsUpstream,
    Compiled,
    Contract,
    Region,
    Role,
    grouped_attention,
    packed_attention,
    size,
    tensor,
)


class Glm4vVisionAttention(upstream.Glm4vVisionAttention):
    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs,
    ) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(
                hidden_states=hidden_states,
                cu_seqlens=cu_seqlens,
                position_embeddings=position_embeddings,
                max_seqlen=max_seqlen,
                **kwargs,
            )

        seq_length = hidden_states.shape[0]
        query_states, key_states, value_states = (
            self.qkv(hidden_states).reshape(seq_length, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
        )
        cos, sin = position_embeddings
        query_states, key_states = upstream.apply_rotary_pos_emb_vision(query_states, key_states, cos, sin)

        query_states = query_states.transpose(0, 1).unsqueeze(0)
        key_states = key_states.transpose(0, 1).unsqueeze(0)
        value_states = value_states.transpose(0, 1).unsqueeze(0)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, upstream.eager_attention_forward
        )

        if is_flash_attention_requested(self.config):
            # Flash Attention: Use cu_seqlens for variable length attention
            max_seqlen = get_max_seqlen(cu_seqlens, self.config, kwargs={"max_seqlen": max_seqlen})
            attn_output, _ = attention_interface(
                self,
                query_states,
                key_states,
                value_states,
                attention_mask=None,
                scaling=self.scaling,
                dropout=0.0 if not self.training else self.attention_dropout,
                cu_seq_lens_q=cu_seqlens,
                cu_seq_lens_k=cu_seqlens,
                max_length_q=max_seqlen,
                max_length_k=max_seqlen,
                is_causal=False,
                **kwargs,
            )
        else:
            # vgen packed-attention: one operator for all segments, where upstream splits by lengths read on the
            # host (modeling_glm4v.py:372-391).
            attn_output = packed_attention(
                attention_interface,
                self,
                query_states,
                key_states,
                value_states,
                cu_seqlens,
                max_seqlen=max_seqlen,
                scaling=self.scaling,
                dropout=0.0 if not self.training else self.attention_dropout,
                **kwargs,
            )

        attn_output = attn_output.reshape(seq_length, -1).contiguous()
        attn_output = self.proj(attn_output)
        return attn_output


class Glm4vVisionBlock(upstream.Glm4vVisionBlock):
    def __init__(self, config) -> None:
        super(upstream.Glm4vVisionBlock, self).__init__()
        self.norm1 = upstream.Glm4vRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm2 = upstream.Glm4vRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attn = Glm4vVisionAttention(config)
        self.mlp = upstream.Glm4VisionMlp(config, bias=False)


class Glm4vTextAttention(upstream.Glm4vTextAttention):
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
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

        bsz, q_len, _ = hidden_states.size()

        query_states = self.q_proj(hidden_states)
        key_states = self.k_proj(hidden_states)
        value_states = self.v_proj(hidden_states)

        query_states = query_states.view(bsz, q_len, -1, self.head_dim).transpose(1, 2)
        key_states = key_states.view(bsz, q_len, -1, self.head_dim).transpose(1, 2)
        value_states = value_states.view(bsz, q_len, -1, self.head_dim).transpose(1, 2)

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
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            **kwargs,
        )

        attn_output = attn_output.reshape(bsz, q_len, -1).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Glm4vTextDecoderLayer(upstream.Glm4vTextDecoderLayer):
    def __init__(self, config: Glm4vTextConfig, layer_idx: int):
        super(upstream.Glm4vTextDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = Glm4vTextAttention(config, layer_idx)
        self.mlp = upstream.Glm4vTextMLP(config)
        self.input_layernorm = upstream.Glm4vRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = upstream.Glm4vRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_self_attn_layernorm = upstream.Glm4vRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_mlp_layernorm = upstream.Glm4vRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Glm4vVisionModel(AsUpstream, Compiled, upstream.Glm4vVisionModel):
    """Encoder region, compiled if `compile_mm_encoder` is set. Upstream: modeling_glm4v.py:685."""

    region = Region(
        "glm4v.encoder",
        role=Role.ENCODER,
        contract=Contract(
            hidden_states=tensor("seq_len", None),
            grid_thw=tensor("num_images_or_videos", 3),
            position_ids=tensor("total_tokens", None),
            cu_seqlens=tensor("num_segments_plus_1"),
            max_seqlen=size(),
        ),
        packed_attention=True,
        records_outputs=True,
    )

    def __init__(self, config: Glm4vVisionConfig) -> None:
        super(upstream.Glm4vVisionModel, self).__init__(config)
        self.spatial_merge_size = config.spatial_merge_size
        self.patch_size = config.patch_size

        self.embeddings = upstream.Glm4vVisionEmbeddings(config)
        self.patch_embed = upstream.Glm4vVisionPatchEmbed(config)

        self.rotary_pos_emb = upstream.Glm4vVisionRotaryEmbedding(config)

        self.blocks = nn.ModuleList([Glm4vVisionBlock(config) for _ in range(config.depth)])
        self.merger = upstream.Glm4vVisionPatchMerger(
            dim=config.out_hidden_size, context_dim=config.intermediate_size, hidden_act=config.hidden_act
        )

        self.post_conv_layernorm = upstream.Glm4vRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.downsample = nn.Conv2d(
            in_channels=config.hidden_size,
            out_channels=config.out_hidden_size,
            kernel_size=config.spatial_merge_size,
            stride=config.spatial_merge_size,
        )
        self.post_layernorm = upstream.Glm4vRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        if not self.region.active(self):
            return super().forward(hidden_states=hidden_states, grid_thw=grid_thw, **kwargs)

        # vgen prologue: computed from values, so outside of the graph (modeling_glm4v.py:736-737).
        hoisted = self.region.prologue(self, kwargs, grid_thw=grid_thw)
        return self.region(self, hidden_states=hidden_states, grid_thw=grid_thw, **hoisted, **kwargs)

    def prologue(self, grid_thw: torch.Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        position_ids = get_vision_position_ids(grid_thw, self.spatial_merge_size, kwargs=kwargs)
        cu_seqlens, max_seqlen = get_vision_attention_seqlens(grid_thw, self.config, kwargs=kwargs)
        return {"position_ids": position_ids, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}

    def core(
        self,
        hidden_states: torch.Tensor,
        grid_thw: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        return super().forward(
            hidden_states=hidden_states,
            grid_thw=grid_thw,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            **kwargs,
        )


class Glm4vTextModel(AsUpstream, Compiled, upstream.Glm4vTextModel):
    """Decoder region. Upstream: modeling_glm4v.py:778."""

    region = Region(
        "glm4v.decoder",
        role=Role.DECODER,
        contract=Contract(
            input_ids=tensor("batch_size", "sequence_length"),
            attention_mask=tensor("batch_size", "kv_length"),
            inputs_embeds=tensor("batch_size", "sequence_length", None),
        ),
        rotary=True,
        records_outputs=True,
        text_positions=True,
    )

    def __init__(self, config: Glm4vTextConfig):
        super(upstream.Glm4vTextModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [Glm4vTextDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = upstream.Glm4vRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = upstream.Glm4vTextRotaryEmbedding(config=config)

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
        **kwargs: Unpack[FlashAttentionKwargs],
    ) -> tuple | BaseModelOutputWithPast:
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
        **kwargs: Unpack[FlashAttentionKwargs],
    ) -> tuple | BaseModelOutputWithPast:
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class Glm4vModel(AsUpstream, upstream.Glm4vModel):
    def __init__(self, config: Glm4vConfig):
        super(upstream.Glm4vModel, self).__init__(config)
        self.visual = Glm4vVisionModel._from_config(config.vision_config)
        self.language_model = Glm4vTextModel._from_config(config.text_config)
        self.rope_deltas = None  # cache rope_deltas here

        # Initialize weights and apply final processing
        self.post_init()


class Glm4vForConditionalGeneration(AsUpstream, upstream.Glm4vForConditionalGeneration):
    def __init__(self, config: Glm4vConfig):
        super(upstream.Glm4vForConditionalGeneration, self).__init__(config)
        self.model = Glm4vModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)

        self.post_init()


__all__ = [
    "Glm4vForConditionalGeneration",
    "Glm4vModel",
    "Glm4vTextModel",
    "Glm4vVisionModel",
]
