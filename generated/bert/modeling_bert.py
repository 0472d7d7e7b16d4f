# SPDX-License-Identifier: Apache-2.0
# Copyright 2018 The Google AI Language Team Authors and The HuggingFace Inc. team.
# Copyright (c) 2018, NVIDIA CORPORATION.  All rights reserved.
#
# Written by vgen from transformers/models/bert/modeling_bert.py. Do not edit: `vgen build bert`
# writes it again, `vgen explain bert` says why each class is here.
"""Compiled subclasses of Transformers' bert models."""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert as upstream
from transformers.models.bert.configuration_bert import BertConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from vgen.runtime import AsUpstream, Compiled, Contract, Region, Role, tensor


class BertModel(AsUpstream, Compiled, upstream.BertModel):
    """Encoder or decoder region. Upstream: modeling_bert.py:594."""

    region = Region(
        "bert",
        role=Role.EITHER,
        contract=Contract(
            input_ids=tensor("batch_size", "sequence_length"),
            attention_mask=tensor("batch_size", "kv_length"),
            token_type_ids=tensor("batch_size", "sequence_length"),
            position_ids=tensor("batch_size", "sequence_length"),
            inputs_embeds=tensor("batch_size", "sequence_length", None),
            encoder_hidden_states=tensor("batch_size", "encoder_sequence_length", None),
            encoder_attention_mask=tensor("batch_size", "encoder_sequence_length"),
        ),
        records_outputs=True,
    )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor] | BaseModelOutputWithPoolingAndCrossAttentions:
        if not self.region.active(self):
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return self.region(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def core(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor] | BaseModelOutputWithPoolingAndCrossAttentions:
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class BertForPreTraining(AsUpstream, upstream.BertForPreTraining):
    def __init__(self, config: BertConfig):
        super(upstream.BertForPreTraining, self).__init__(config)

        self.bert = BertModel(config)
        self.cls = upstream.BertPreTrainingHeads(config)

        # Initialize weights and apply final processing
        self.post_init()


class BertLMHeadModel(AsUpstream, upstream.BertLMHeadModel):
    def __init__(self, config: BertConfig):
        super(upstream.BertLMHeadModel, self).__init__(config)

        if not config.is_decoder:
            upstream.logger.warning("If you want to use `BertLMHeadModel` as a standalone, add `is_decoder=True.`")

        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = upstream.BertOnlyMLMHead(config)

        # Initialize weights and apply final processing
        self.post_init()


class BertForMaskedLM(AsUpstream, upstream.BertForMaskedLM):
    def __init__(self, config: BertConfig):
        super(upstream.BertForMaskedLM, self).__init__(config)

        if config.is_decoder:
            upstream.logger.warning(
                "If you want to use `BertForMaskedLM` make sure `config.is_decoder=False` for "
                "bi-directional self-attention."
            )

        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = upstream.BertOnlyMLMHead(config)

        # Initialize weights and apply final processing
        self.post_init()


class BertForNextSentencePrediction(AsUpstream, upstream.BertForNextSentencePrediction):
    def __init__(self, config: BertConfig):
        super(upstream.BertForNextSentencePrediction, self).__init__(config)

        self.bert = BertModel(config)
        self.cls = upstream.BertOnlyNSPHead(config)

        # Initialize weights and apply final processing
        self.post_init()


class BertForSequenceClassification(AsUpstream, upstream.BertForSequenceClassification):
    def __init__(self, config: BertConfig):
        super(upstream.BertForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.config = config

        self.bert = BertModel(config)
        classifier_dropout = (
            config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
        )
        self.dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

        # Initialize weights and apply final processing
        self.post_init()


class BertForMultipleChoice(AsUpstream, upstream.BertForMultipleChoice):
    def __init__(self, config: BertConfig):
        super(upstream.BertForMultipleChoice, self).__init__(config)

        self.bert = BertModel(config)
        classifier_dropout = (
            config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
        )
        self.dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, 1)

        # Initialize weights and apply final processing
        self.post_init()


class BertForTokenClassification(AsUpstream, upstream.BertForTokenClassification):
    def __init__(self, config: BertConfig):
        super(upstream.BertForTokenClassification, self).__init__(config)
        self.num_labels = config.num_labels

        self.bert = BertModel(config, add_pooling_layer=False)
        classifier_dropout = (
            config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
        )
        self.dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

        # Initialize weights and apply final processing
        self.post_init()


class BertForQuestionAnswering(AsUpstream, upstream.BertForQuestionAnswering):
    def __init__(self, config: BertConfig):
        super(upstream.BertForQuestionAnswering, self).__init__(config)
        self.num_labels = config.num_labels

        self.bert = BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)

        # Initialize weights and apply final processing
        self.post_init()


__all__ = [
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertLMHeadModel",
    "BertModel",
]
