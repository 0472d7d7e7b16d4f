# SPDX-License-Identifier: Apache-2.0
# Copyright 2025 The Qwen Team and The HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py. Do not edit: `vgen build qwen2_5_vl`
# writes it again, `vgen explain qwen2_5_vl` says why each class is here.
"""Compiled subclasses of Transformers' qwen2_5_vl models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as upstream
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import get_max_seqlen, is_flash_attention_requested
from transformers.vision_utils import get_vision_attention_seqlens, get_vision_position_ids, get_vision_window_index

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


class Qwen2_5_VLVisionAttention(upstream.Qwen2_5_VLVisionAttention):
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
            # host (modeling_qwen2_5_vl.py:311-330).
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


class Qwen2_5_VLVisionBlock(upstream.Qwen2_5_VLVisionBlock):
    def __init__(self, config, attn_implementation: str = "sdpa") -> None:
        super(upstream.Qwen2_5_VLVisionBlock, self).__init__()
        self.norm1 = upstream.Qwen2_5_VLRMSNorm(config.hidden_size, eps=1e-6)
        self.norm2 = upstream.Qwen2_5_VLRMSNorm(config.hidden_size, eps=1e-6)
        self.attn = Qwen2_5_VLVisionAttention(config=config)
        self.mlp = upstream.Qwen2_5_VLMLP(config, bias=True)


class Qwen2_5_VisionTransformerPretrainedModel(
    AsUpstream, Compiled, upstream.Qwen2_5_VisionTransformerPretrainedModel
):
    """Encoder region, compiled if `compile_mm_encoder` is set. Upstream: modeling_qwen2_5_vl.py:382."""

    region = Region(
        "qwen2_5_vl.encoder",
        role=Role.ENCODER,
        contract=Contract(
            hidden_states=tensor("seq_len", None),
            position_ids=tensor("total_tokens", None),
            cu_seqlens=tensor("num_segments_plus_1"),
            max_seqlen=size(),
            window_index=tensor("window_index_total_tokens"),
            cu_window_seqlens=tensor("num_windows_plus_1"),
            max_window_seqlen=size(),
        ),
        packed_attention=True,
        records_outputs=True,
    )

    def __init__(self, config: Qwen2_5_VLVisionConfig, *inputs, **kwargs) -> None:
        super(upstream.Qwen2_5_VisionTransformerPretrainedModel, self).__init__(config, *inputs, **kwargs)
        self.spatial_merge_size = config.spatial_merge_size
        self.patch_size = config.patch_size
        self.fullatt_block_indexes = config.fullatt_block_indexes
        self.window_size = config.window_size
        self.spatial_merge_unit = self.spatial_merge_size * self.spatial_merge_size

        self.patch_embed = upstream.Qwen2_5_VisionPatchEmbed(
            patch_size=config.patch_size,
            temporal_patch_size=config.temporal_patch_size,
            in_channels=config.in_channels,
            embed_dim=config.hidden_size,
        )

        self.rotary_pos_emb = upstream.Qwen2_5_VLVisionRotaryEmbedding(config)

        self.blocks = nn.ModuleList([Qwen2_5_VLVisionBlock(config) for _ in range(config.depth)])
        self.merger = upstream.Qwen2_5_VLPatchMerger(
            dim=config.out_hidden_size,
            context_dim=config.hidden_size,
            spatial_merge_size=config.spatial_merge_size,
        )
        self.gradient_checkpointing = False

        self.post_init()

    def forward(
        self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        if not self.region.active(self):
            return super().forward(hidden_states=hidden_states, grid_thw=grid_thw, **kwargs)

        # vgen prologue: computed from values, so outside of the graph (modeling_qwen2_5_vl.py:439-450).
        hoisted = self.region.prologue(self, kwargs, grid_thw=grid_thw)
        return self.region(self, hidden_states=hidden_states, **hoisted, **kwargs)

    def prologue(self, grid_thw: torch.Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        position_ids = get_vision_position_ids(grid_thw, self.spatial_merge_size, kwargs=kwargs)
        cu_seqlens, max_seqlen = get_vision_attention_seqlens(grid_thw, self.config, kwargs=kwargs)
        window_index, cu_window_seqlens = get_vision_window_index(
            grid_thw,
            spatial_merge_size=self.spatial_merge_size,
            window_size=self.window_size,
            patch_size=self.patch_size,
            kwargs=kwargs,
        )
        max_window_seqlen = get_max_seqlen(
            cu_window_seqlens, self.config, kwargs=kwargs, kwarg_name="max_window_seqlen"
        )
        return {
            "position_ids": position_ids,
            "cu_seqlens": cu_seqlens,
            "max_seqlen": max_seqlen,
            "window_index": window_index,
            "cu_window_seqlens": cu_window_seqlens,
            "max_window_seqlen": max_window_seqlen,
        }

    def core(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int | None,
        window_index: torch.Tensor,
        cu_window_seqlens: torch.Tensor,
        max_window_seqlen: int | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        return super().forward(
            hidden_states=hidden_states,
            grid_thw=None,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            window_index=window_index,
            cu_window_seqlens=cu_window_seqlens,
            max_window_seqlen=max_window_seqlen,
            **kwargs,
        )


class Qwen2_5_VLAttention(upstream.Qwen2_5_VLAttention):
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


class Qwen2_5_VLDecoderLayer(upstream.Qwen2_5_VLDecoderLayer):
    def __init__(self, config: Qwen2_5_VLTextConfig, layer_idx: int):
        super(upstream.Qwen2_5_VLDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size

        if config.use_sliding_window and not is_flash_attention_requested(config):
            upstream.logger.warning_once(
                f"Sliding Window Attention is enabled but not implemented for `{config._attn_implementation}`; "
                "unexpected results may be encountered."
            )
        self.self_attn = Qwen2_5_VLAttention(config, layer_idx)

        self.mlp = upstream.Qwen2MLP(config)
        self.input_layernorm = upstream.Qwen2_5_VLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = upstream.Qwen2_5_VLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Qwen2_5_VLTextModel(AsUpstream, Compiled, upstream.Qwen2_5_VLTextModel):
    """Decoder region. Upstream: modeling_qwen2_5_vl.py:745."""

    region = Region(
        "qwen2_5_vl.decoder",
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

    def __init__(self, config: Qwen2_5_VLTextConfig):
        super(upstream.Qwen2_5_VLTextModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [Qwen2_5_VLDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self._attn_implementation = config._attn_implementation
        self.norm = upstream.Qwen2_5_VLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.has_sliding_layers = "sliding_attention" in self.config.layer_types
        self.rotary_emb = upstream.Qwen2_5_VLRotaryEmbedding(config=config)

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


class Qwen2_5_VLModel(AsUpstream, upstream.Qwen2_5_VLModel):
    def __init__(self, config: Qwen2_5_VLConfig):
        super(upstream.Qwen2_5_VLModel, self).__init__(config)
        self.visual = Qwen2_5_VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.language_model = Qwen2_5_VLTextModel._from_config(config.text_config)
        self.rope_deltas = None  # cache rope_deltas here

        # Initialize weights and apply final processing
        self.post_init()


class Qwen2_5_VLForConditionalGeneration(AsUpstream, upstream.Qwen2_5_VLForConditionalGeneration):
    def __init__(self, config: Qwen2_5_VLConfig):
        super(upstream.Qwen2_5_VLForConditionalGeneration, self).__init__(config)
        self.model = Qwen2_5_VLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)

        self.post_init()


__all__ = [
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLModel",
    "Qwen2_5_VLTextModel",
    "Qwen2_5_VisionTransformerPretrainedModel",
]
