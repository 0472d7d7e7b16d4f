# SPDX-License-Identifier: Apache-2.0
# Copyright 2025 The Qwen Team and The HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/qwen3_vl/modeling_qwen3_vl.py. Do not edit: `vgen build qwen3_vl`
# writes it again, `vgen explain qwen3_vl` says why each class is here.
"""Compiled subclasses of Transformers' qwen3_vl models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import AutoModel
from transformers.models.qwen3_vl import modeling_qwen3_vl as upstream
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig, Qwen3VLTextConfig, Qwen3VLVisionConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import get_max_seqlen, is_flash_attention_requested
from transformers.vision_utils import (
    get_vision_attention_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from vgen.runtime import (
    AsUpstream,
    Compiled,
    Contract,
    Region,
    Role,
    child_from_config,
    grouped_attention,
    packed_attention,
    size,
    tensor,
)


class Qwen3VLVisionAttention(upstream.Qwen3VLVisionAttention):
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
            # host (modeling_qwen3_vl.py:297-316).
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


class Qwen3VLVisionBlock(upstream.Qwen3VLVisionBlock):
    def __init__(self, config, attn_implementation: str = "sdpa") -> None:
        super(upstream.Qwen3VLVisionBlock, self).__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.attn = Qwen3VLVisionAttention(config=config)
        self.mlp = upstream.Qwen3VLVisionMLP(config=config)


class Qwen3VLTextAttention(upstream.Qwen3VLTextAttention):
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[FlashAttentionKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
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

        query_states = self.q_norm(self.q_proj(hidden_states).view(hidden_shape)).transpose(1, 2)
        key_states = self.k_norm(self.k_proj(hidden_states).view(hidden_shape)).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

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

        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Qwen3VLTextDecoderLayer(upstream.Qwen3VLTextDecoderLayer):
    def __init__(self, config: Qwen3VLTextConfig, layer_idx: int):
        super(upstream.Qwen3VLTextDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size

        self.self_attn = Qwen3VLTextAttention(config=config, layer_idx=layer_idx)

        self.mlp = upstream.Qwen3VLTextMLP(config)
        self.input_layernorm = upstream.Qwen3VLTextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = upstream.Qwen3VLTextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Qwen3VLVisionModel(AsUpstream, Compiled, upstream.Qwen3VLVisionModel):
    """Encoder region, compiled if `compile_mm_encoder` is set. Upstream: modeling_qwen3_vl.py:616."""

    region = Region(
        "qwen3_vl.encoder",
        role=Role.ENCODER,
        contract=Contract(
            hidden_states=tensor("seq_len", None),
            interp_indices=tensor("total_thw", "n_taps"),
            interp_weights=tensor("total_thw", "n_taps"),
            position_ids=tensor("total_tokens", None),
            cu_seqlens=tensor("num_segments_plus_1"),
            max_seqlen=size(),
        ),
        packed_attention=True,
        records_outputs=True,
    )

    def __init__(self, config: Qwen3VLVisionConfig, *inputs, **kwargs) -> None:
        super(upstream.Qwen3VLVisionModel, self).__init__(config, *inputs, **kwargs)
        self.spatial_merge_size = config.spatial_merge_size
        self.patch_size = config.patch_size
        self.spatial_merge_unit = self.spatial_merge_size * self.spatial_merge_size

        self.patch_embed = upstream.Qwen3VLVisionPatchEmbed(
            config=config,
        )

        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        # How the (square) learned position grid is resampled to each image's grid.
        self.num_grid_per_side = int(config.num_position_embeddings**0.5)
        self.interpolation_align_corners = True
        self.interpolation_mode = "bilinear"

        self.rotary_pos_emb = upstream.Qwen3VLVisionRotaryEmbedding(config)

        self.blocks = nn.ModuleList([Qwen3VLVisionBlock(config) for _ in range(config.depth)])
        self.merger = upstream.Qwen3VLVisionPatchMerger(
            config=config,
            use_postshuffle_norm=False,
        )

        self.deepstack_visual_indexes = config.deepstack_visual_indexes
        self.deepstack_merger_list = nn.ModuleList(
            [
                upstream.Qwen3VLVisionPatchMerger(
                    config=config,
                    use_postshuffle_norm=True,
                )
                for _ in range(len(config.deepstack_visual_indexes))
            ]
        )

        self.gradient_checkpointing = False

        self.post_init()

    def forward(
        self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | upstream.BaseModelOutputWithDeepstackFeatures:
        if not self.region.active(self):
            return super().forward(hidden_states=hidden_states, grid_thw=grid_thw, **kwargs)

        # vgen prologue: computed from values, so outside of the graph (modeling_qwen3_vl.py:678-687).
        hoisted = self.region.prologue(self, kwargs, grid_thw=grid_thw)
        return self.region(self, hidden_states=hidden_states, **hoisted, **kwargs)

    def prologue(self, grid_thw: torch.Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        interp_indices, interp_weights = get_vision_interpolation_indices_and_weights(
            grid_thw,
            num_grid_per_side=self.num_grid_per_side,
            mode=self.interpolation_mode,
            align_corners=self.interpolation_align_corners,
            spatial_merge_size=self.config.spatial_merge_size,
            kwargs=kwargs,
        )
        position_ids = get_vision_position_ids(grid_thw, self.spatial_merge_size, kwargs=kwargs)
        cu_seqlens, max_seqlen = get_vision_attention_seqlens(grid_thw, self.config, kwargs=kwargs)
        return {
            "interp_indices": interp_indices,
            "interp_weights": interp_weights,
            "position_ids": position_ids,
            "cu_seqlens": cu_seqlens,
            "max_seqlen": max_seqlen,
        }

    def core(
        self,
        hidden_states: torch.Tensor,
        interp_indices: torch.Tensor,
        interp_weights: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | upstream.BaseModelOutputWithDeepstackFeatures:
        return super().forward(
            hidden_states=hidden_states,
            grid_thw=None,
            interp_indices=interp_indices,
            interp_weights=interp_weights,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            **kwargs,
        )


class Qwen3VLTextModel(AsUpstream, Compiled, upstream.Qwen3VLTextModel):
    """Decoder region. Upstream: modeling_qwen3_vl.py:727."""

    region = Region(
        "qwen3_vl.decoder",
        role=Role.DECODER,
        contract=Contract(
            input_ids=tensor("batch_size", "sequence_length"),
            attention_mask=tensor("batch_size", "kv_length"),
            inputs_embeds=tensor("batch_size", "sequence_length", None),
            visual_pos_masks=tensor("batch_size", "seqlen"),
        ),
        rotary=True,
        records_outputs=True,
        plain_positions=True,
        text_positions=True,
    )

    def __init__(self, config: Qwen3VLTextConfig):
        super(upstream.Qwen3VLTextModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [Qwen3VLTextDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = upstream.Qwen3VLTextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = upstream.Qwen3VLTextRotaryEmbedding(config=config)
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
        visual_pos_masks: torch.Tensor | None = None,
        deepstack_visual_embeds: list[torch.Tensor] | None = None,
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
                visual_pos_masks=visual_pos_masks,
                deepstack_visual_embeds=deepstack_visual_embeds,
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
            visual_pos_masks=visual_pos_masks,
            deepstack_visual_embeds=deepstack_visual_embeds,
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
        visual_pos_masks: torch.Tensor | None,
        deepstack_visual_embeds: list[torch.Tensor] | None,
        **kwargs: Unpack[FlashAttentionKwargs],
    ) -> tuple | BaseModelOutputWithPast:
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            visual_pos_masks=visual_pos_masks,
            deepstack_visual_embeds=deepstack_visual_embeds,
            **kwargs,
        )


class Qwen3VLModel(AsUpstream, upstream.Qwen3VLModel):
    def __init__(self, config: Qwen3VLConfig):
        super(upstream.Qwen3VLModel, self).__init__(config)
        self.visual = child_from_config(AutoModel, config.vision_config, package=__package__)
        self.language_model = child_from_config(AutoModel, config.text_config, package=__package__)
        self.rope_deltas = None  # cache rope_deltas here

        # Initialize weights and apply final processing
        self.post_init()


class Qwen3VLForConditionalGeneration(AsUpstream, upstream.Qwen3VLForConditionalGeneration):
    def __init__(self, config: Qwen3VLConfig):
        super(upstream.Qwen3VLForConditionalGeneration, self).__init__(config)
        self.model = Qwen3VLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)

        self.post_init()


__all__ = [
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLModel",
    "Qwen3VLTextModel",
    "Qwen3VLVisionModel",
]
