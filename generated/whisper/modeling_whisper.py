# SPDX-License-Identifier: Apache-2.0
# Copyright 2022 The OpenAI Authors and The HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/whisper/modeling_whisper.py. Do not edit: `vgen build whisper`
# writes it again, `vgen explain whisper` says why each class is here.
"""Compiled subclasses of Transformers' whisper models."""

import math

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.models.whisper import modeling_whisper as upstream
from transformers.models.whisper.configuration_whisper import WhisperConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role, tensor


class WhisperEncoderLayer(Compiled, upstream.WhisperEncoderLayer):
    """Encoder region in training (each layer), if `compile_mm_encoder` is set. Upstream: modeling_whisper.py:362."""

    region = Region(
        "whisper.encoder.block",
        role=Role.ENCODER,
        contract=Contract(),
        per_instance=False,
        only_in_training=True,
    )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        if not self.region.active(self):
            return super().forward(hidden_states=hidden_states, attention_mask=attention_mask, **kwargs)
        return self.region(self, hidden_states=hidden_states, attention_mask=attention_mask, **kwargs)

    def core(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        return super().forward(hidden_states=hidden_states, attention_mask=attention_mask, **kwargs)


class WhisperDecoderLayer(Compiled, upstream.WhisperDecoderLayer):
    """Decoder region in training (each layer). Upstream: modeling_whisper.py:418."""

    region = Region(
        "whisper.decoder.block",
        role=Role.DECODER,
        contract=Contract(),
        per_instance=False,
        only_in_training=True,
    )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        if not self.region.active(self):
            return super().forward(
                hidden_states=hidden_states,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return self.region(
            self,
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def core(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        past_key_values: EncoderDecoderCache | None,
        use_cache: bool | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        return super().forward(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class WhisperEncoder(AsUpstream, Compiled, upstream.WhisperEncoder):
    """Encoder region, compiled if `compile_mm_encoder` is set. Upstream: modeling_whisper.py:542."""

    region = Region(
        "whisper.encoder",
        role=Role.ENCODER,
        contract=Contract(
            input_features=tensor("batch_size", None, "sequence_length"),
        ),
        records_outputs=True,
    )

    def __init__(self, config: WhisperConfig):
        super(upstream.WhisperEncoder, self).__init__(config)
        self.dropout = config.dropout
        self.layerdrop = config.encoder_layerdrop

        embed_dim = config.d_model
        self.num_mel_bins = config.num_mel_bins
        self.padding_idx = config.pad_token_id
        self.max_source_positions = config.max_source_positions
        self.embed_scale = math.sqrt(embed_dim) if config.scale_embedding else 1.0

        self.conv1 = nn.Conv1d(self.num_mel_bins, embed_dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(embed_dim, embed_dim, kernel_size=3, stride=2, padding=1)

        self.embed_positions = nn.Embedding(self.max_source_positions, embed_dim)
        self.embed_positions.requires_grad_(False)

        self.layers = nn.ModuleList([WhisperEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(config.d_model)

        self.gradient_checkpointing = False
        # Initialize weights and apply final processing
        self.post_init()

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        # vgen by-layer: layers are left out at random (modeling_whisper.py:629), so each is a graph of its own.
        if (self.training and self.layerdrop > 0.0) or not self.region.active(self):
            return super().forward(input_features=input_features, attention_mask=attention_mask, **kwargs)
        return self.region(self, input_features=input_features, attention_mask=attention_mask, **kwargs)

    def core(
        self,
        input_features: torch.Tensor,
        attention_mask,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        return super().forward(input_features=input_features, attention_mask=attention_mask, **kwargs)


class WhisperDecoder(AsUpstream, Compiled, upstream.WhisperDecoder):
    """Decoder region. Upstream: modeling_whisper.py:646."""

    region = Region(
        "whisper.decoder",
        role=Role.DECODER,
        contract=Contract(
            input_ids=tensor("batch_size", "sequence_length"),
            attention_mask=tensor("batch_size", "kv_length"),
            encoder_hidden_states=tensor("batch_size", "encoder_sequence_length", None),
            inputs_embeds=tensor("batch_size", "sequence_length", None),
        ),
        records_outputs=True,
        plain_positions=True,
    )

    def __init__(self, config: WhisperConfig):
        super(upstream.WhisperDecoder, self).__init__(config)
        self.dropout = config.dropout
        self.layerdrop = config.decoder_layerdrop
        self.padding_idx = config.pad_token_id
        self.max_target_positions = config.max_target_positions
        self.max_source_positions = config.max_source_positions
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0

        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, self.padding_idx)
        self.embed_positions = upstream.WhisperPositionalEmbedding(self.max_target_positions, config.d_model)

        self.layers = nn.ModuleList(
            [WhisperDecoderLayer(config, layer_idx) for layer_idx in range(config.decoder_layers)]
        )

        self.layer_norm = nn.LayerNorm(config.d_model)

        self.gradient_checkpointing = False
        # Initialize weights and apply final processing
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        encoder_hidden_states=None,
        past_key_values=None,
        inputs_embeds=None,
        position_ids=None,
        use_cache=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        # vgen by-layer: layers are left out at random (modeling_whisper.py:804), so each is a graph of its own.
        if (self.training and self.layerdrop > 0.0) or not self.region.active(self):
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                use_cache=use_cache,
                **kwargs,
            )
        return self.region(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            use_cache=use_cache,
            **kwargs,
        )

    def core(
        self,
        input_ids,
        attention_mask,
        encoder_hidden_states,
        past_key_values,
        inputs_embeds,
        position_ids,
        use_cache,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            use_cache=use_cache,
            **kwargs,
        )


class WhisperModel(AsUpstream, upstream.WhisperModel):
    def __init__(self, config: WhisperConfig):
        super(upstream.WhisperModel, self).__init__(config)

        self.encoder = WhisperEncoder(config)
        self.decoder = WhisperDecoder(config)
        # Initialize weights and apply final processing
        self.post_init()


class WhisperForConditionalGeneration(AsUpstream, upstream.WhisperForConditionalGeneration):
    def __init__(self, config: WhisperConfig):
        super(upstream.WhisperForConditionalGeneration, self).__init__(config)
        self.model = WhisperModel(config)
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.max_target_positions = config.max_target_positions

        # Initialize weights and apply final processing
        self.post_init()


class WhisperDecoderWrapper(AsUpstream, upstream.WhisperDecoderWrapper):
    def __init__(self, config: WhisperConfig):
        super(upstream.WhisperDecoderWrapper, self).__init__(config)
        config.is_encoder_decoder = False
        self.decoder = WhisperDecoder(config)
        self.post_init()


class WhisperForCausalLM(AsUpstream, upstream.WhisperForCausalLM):
    def __init__(self, config: WhisperConfig):
        super(upstream.WhisperForCausalLM, self).__init__(config)
        config.is_encoder_decoder = False
        self.model = WhisperDecoderWrapper(config)

        self.proj_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

        # Initialize weights and apply final processing
        self.post_init()


class WhisperForAudioClassification(AsUpstream, upstream.WhisperForAudioClassification):
    def __init__(self, config: WhisperConfig):
        super(upstream.WhisperForAudioClassification, self).__init__(config)

        self.encoder = WhisperEncoder(config)
        num_layers = config.num_hidden_layers + 1  # transformer layers + input embeddings
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.ones(num_layers) / num_layers)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)

        # Initialize weights and apply final processing
        self.post_init()


__all__ = [
    "WhisperForAudioClassification",
    "WhisperForCausalLM",
    "WhisperForConditionalGeneration",
    "WhisperModel",
]
