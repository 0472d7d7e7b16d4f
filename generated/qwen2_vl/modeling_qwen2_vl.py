# SPDX-License-Identifier: Apache-2.0
# Copyright 2024 The Qwen team, Alibaba Group and the HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/qwen2_vl/modeling_qwen2_vl.py. Do not edit: `vgen build qwen2_vl`
# writes it again, `vgen explain qwen2_vl` says why each class is here.
"""Compiled subclasses of Transformers' qwen2_vl models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import LayerNorm
from transformers.cache_utils import Cache
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl import modeling_qwen2_vl as upstream
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig, Qwen2VLTextConfig, Qwen2VLVisionConfig
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


class VisionAttention(upstream.VisionAttention):
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
            # host (modeling_qwen2_vl.py:401-420).
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


class Qwen2VLVisionBlock(upstream.Qwen2VLVisionBlock):
    def __init__(self, config, attn_implementation: str = "sdpa") -> None:
        super(upstream.Qwen2VLVisionBlock, self).__init__()
        self.norm1 = LayerNorm(config.embed_dim, eps=1e-6)
        self.norm2 = LayerNorm(config.embed_dim, eps=1e-6)
        mlp_hidden_dim = int(config.embed_dim * config.mlp_ratio)

        self.attn = VisionAttention(config=config)
        self.mlp = upstream.VisionMlp(dim=config.embed_dim, hidden_dim=mlp_hidden_dim, hidden_act=config.hidden_act)


class Qwen2VLAttention(upstream.Qwen2VLAttention):
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Unpack[FlashAttentionKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor] | None]:
        if not torch.compiler.is_compiling():
            return super().forward(
                hidden_states=hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
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
            sliding_window=self.sliding_window,
            position_ids=position_ids,  # pass positions for FA2
            **kwargs,
        )

        attn_output = attn_output.reshape(bsz, q_len, -1).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Qwen2VLDecoderLayer(upstream.Qwen2VLDecoderLayer):
    def __init__(self, config: Qwen2VLTextConfig, layer_idx: int):
        super(upstream.Qwen2VLDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size

        if config.use_sliding_window and not is_flash_attention_requested(config):
            upstream.logger.warning_once(
                f"Sliding Window Attention is enabled but not implemented for `{config._attn_implementation}`; "
                "unexpected results may be encountered."
            )
        self.self_attn = Qwen2VLAttention(config, layer_idx)

        self.mlp = upstream.Qwen2MLP(config)
        self.input_layernorm = upstream.Qwen2VLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = upstream.Qwen2VLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Qwen2VisionTransformerPretrainedModel(AsUpstream, Compiled, upstream.Qwen2VisionTransformerPretrainedModel):
    """Encoder region, compiled if `compile_mm_encoder` is set. Upstream: modeling_qwen2_vl.py:642."""

    region = Region(
        "qwen2_vl.encoder",
        role=Role.ENCODER,
        contract=Contract(
            position_ids=tensor("total_tokens", None),
            cu_seqlens=tensor("num_segments_plus_1"),
            max_seqlen=size(),
        ),
        packed_attention=True,
        records_outputs=True,
    )

    def __init__(self, config: Qwen2VLVisionConfig) -> None:
        super(upstream.Qwen2VisionTransformerPretrainedModel, self).__init__(config)
        self.spatial_merge_size = config.spatial_merge_size

        self.patch_embed = upstream.PatchEmbed(
            patch_size=config.patch_size,
            temporal_patch_size=config.temporal_patch_size,
            in_channels=config.in_channels,
            embed_dim=config.embed_dim,
        )

        self.rotary_pos_emb = upstream.Qwen2VLVisionRotaryEmbedding(config)
        self.blocks = nn.ModuleList([Qwen2VLVisionBlock(config) for _ in range(config.depth)])
        self.merger = upstream.PatchMerger(
            dim=config.hidden_size, context_dim=config.embed_dim, spatial_merge_size=config.spatial_merge_size
        )
        self.gradient_checkpointing = False

        self.post_init()

    def forward(
        self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        if not self.region.active(self):
            return super().forward(hidden_states=hidden_states, grid_thw=grid_thw, **kwargs)

        # vgen prologue: computed from values, so outside of the graph (modeling_qwen2_vl.py:688-689).
        hoisted = self.region.prologue(self, kwargs, grid_thw=grid_thw)
        return self.region(self, hidden_states=hidden_states, **hoisted, **kwargs)

    def prologue(self, grid_thw: torch.Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        position_ids = get_vision_position_ids(grid_thw, self.spatial_merge_size, kwargs=kwargs)
        cu_seqlens, max_seqlen = get_vision_attention_seqlens(grid_thw, self.config, kwargs=kwargs)
        return {"position_ids": position_ids, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}

    def core(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        return super().forward(
            hidden_states=hidden_states,
            grid_thw=None,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            **kwargs,
        )


class Qwen2VLTextModel(AsUpstream, Compiled, upstream.Qwen2VLTextModel):
    """Decoder region. Upstream: modeling_qwen2_vl.py:712."""

    region = Region(
        "qwen2_vl.decoder",
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

    def __init__(self, config: Qwen2VLTextConfig):
        super(upstream.Qwen2VLTextModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [Qwen2VLDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self._attn_implementation = config._attn_implementation
        self.norm = upstream.Qwen2VLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.has_sliding_layers = "sliding_attention" in self.config.layer_types
        self.rotary_emb = upstream.Qwen2VLRotaryEmbedding(config=config)

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
        **kwargs: Unpack[FlashAttentionKwargs],
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


class Qwen2VLModel(AsUpstream, upstream.Qwen2VLModel):
    def __init__(self, config: Qwen2VLConfig):
        super(upstream.Qwen2VLModel, self).__init__(config)
        self.visual = Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.language_model = Qwen2VLTextModel._from_config(config.text_config)
        self.rope_deltas = None  # cache rope_deltas here

        # Initialize weights and apply final processing
        self.post_init()


class Qwen2VLForConditionalGeneration(AsUpstream, upstream.Qwen2VLForConditionalGeneration):
    def __init__(self, config: Qwen2VLConfig):
        super(upstream.Qwen2VLForConditionalGeneration, self).__init__(config)
        self.model = Qwen2VLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)

        self.post_init()


__all__ = [
    "Qwen2VLForConditionalGeneration",
    "Qwen2VLModel",
    "Qwen2VLTextModel",
]
