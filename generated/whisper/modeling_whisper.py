# SPDX-License-Identifier: Apache-2.0
# Copyright 2022 The OpenAI Authors and The HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/whisper/modeling_whisper.py. Do not edit: `vgen build whisper`
# writes it again, `vgen explain whisper` says why each class is here.
"""Compiled subclasses of Transformers' whisper models."""

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.models.whisper import modeling_whisper as upstream
from transformers.models.whisper.configuration_whisper import WhisperConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role, tensor


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

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        if not self.region.active(self):
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
    )

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
        if not self.region.active(self):
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
