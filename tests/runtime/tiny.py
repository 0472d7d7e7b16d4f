# SPDX-License-Identifier: Apache-2.0
"""Tiny models written as the generator writes them, for tests of the runtime alone. Loaded by conftest.py."""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, Qwen2_5_VLConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role, packed_attention, size, tensor


def llama_config(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(
        **sizes | {"num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 256} | changes
    )


class LlamaModel(AsUpstream, Compiled, modeling_llama.LlamaModel):
    region = Region(
        "llama.decoder",
        role=Role.DECODER,
        contract=Contract(
            input_ids=tensor("batch_size", "sequence_length"),
            attention_mask=tensor("batch_size", "kv_length"),
            position_ids=tensor("batch_size", "sequence_length"),
            inputs_embeds=tensor("batch_size", "sequence_length", None),
        ),
        rotary=True,
        records_outputs=True,
    )

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        run = self.region if self.region.active(self) else type(self).core
        return run(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def core(self, **kwargs):
        return super().forward(**kwargs)


class LlamaForCausalLM(AsUpstream, modeling_llama.LlamaForCausalLM):
    def __init__(self, config):
        super(modeling_llama.LlamaForCausalLM, self).__init__(config)
        self.model = LlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class LlamaMLP(Compiled, modeling_llama.LlamaMLP):
    """A block: its instances share what they compile."""

    region = Region(
        "llama.block",
        role=Role.DECODER,
        contract=Contract(x=tensor("batch_size", "sequence_length", None)),
        per_instance=False,
    )

    def forward(self, x):
        return self.region(self, x=x) if self.region.active(self) else super().forward(x)

    def core(self, x):
        return super().forward(x)


def vision_config(**changes: Any) -> Any:
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 44, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=sizes | {"fullatt_block_indexes": [1]} | changes)
    return config.vision_config


class VisionAttention(modeling_qwen2_5_vl.Qwen2_5_VLVisionAttention):
    def forward(self, hidden_states, cu_seqlens, position_embeddings=None, max_seqlen=None, **kwargs):
        if not torch.compiler.is_compiling():
            return super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
        length = hidden_states.shape[0]
        query, key, value = (
            self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
        )
        query, key = modeling_qwen2_5_vl.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        out = packed_attention(
            ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, modeling_qwen2_5_vl.eager_attention_forward
            ),
            self,
            query.transpose(0, 1).unsqueeze(0),
            key.transpose(0, 1).unsqueeze(0),
            value.transpose(0, 1).unsqueeze(0),
            cu_seqlens,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.proj(out.reshape(length, -1).contiguous())


class Vision(AsUpstream, Compiled, modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel):
    region = Region(
        "vision.encoder",
        role=Role.ENCODER,
        contract=Contract(
            hidden_states=tensor("seq_len", None),
            position_ids=tensor("seq_len", 2),
            cu_seqlens=tensor("segments"),
            max_seqlen=size(),
            window_index=tensor("window_index"),
            cu_window_seqlens=tensor("windows"),
            max_window_seqlen=size(),
        ),
        packed_attention=True,
        records_outputs=True,
    )

    def __init__(self, config):
        super().__init__(config)
        for block in self.blocks:
            block.attn = VisionAttention(config)

    def forward(self, hidden_states, grid_thw, **kwargs):
        if not self.region.active(self):
            return super().forward(hidden_states, grid_thw, **kwargs)
        position_ids = modeling_qwen2_5_vl.get_vision_position_ids(grid_thw, self.spatial_merge_size, kwargs=kwargs)
        cu_seqlens, max_seqlen = modeling_qwen2_5_vl.get_vision_attention_seqlens(grid_thw, self.config, kwargs=kwargs)
        window_index, cu_window_seqlens = modeling_qwen2_5_vl.get_vision_window_index(
            grid_thw,
            spatial_merge_size=self.spatial_merge_size,
            window_size=self.window_size,
            patch_size=self.patch_size,
            kwargs=kwargs,
        )
        return self.region(
            self,
            hidden_states=hidden_states,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            window_index=window_index,
            cu_window_seqlens=cu_window_seqlens,
            max_window_seqlen=None,
            **kwargs,
        )

    def core(self, hidden_states, **kwargs):
        return super().forward(hidden_states, None, **kwargs)
