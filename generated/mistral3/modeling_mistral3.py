# SPDX-License-Identifier: Apache-2.0
# Copyright 2025 HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/mistral3/modeling_mistral3.py. Do not edit: `vgen build mistral3`
# writes it again, `vgen explain mistral3` says why each class is here.
"""Compiled subclasses of Transformers' mistral3 models."""

from torch import nn
from transformers.models.auto import AutoModel
from transformers.models.mistral3 import modeling_mistral3 as upstream
from transformers.models.mistral3.configuration_mistral3 import Mistral3Config

from vgen.runtime import AsUpstream, child_from_config


class Mistral3Model(AsUpstream, upstream.Mistral3Model):
    def __init__(self, config: Mistral3Config):
        super(upstream.Mistral3Model, self).__init__(config)
        self.vision_tower = child_from_config(AutoModel, config.vision_config, package=__package__)

        self.multi_modal_projector = upstream.Mistral3MultiModalProjector(config)
        self.language_model = child_from_config(AutoModel, config.text_config, package=__package__)
        self.post_init()


class Mistral3ForConditionalGeneration(AsUpstream, upstream.Mistral3ForConditionalGeneration):
    def __init__(self, config: Mistral3Config):
        super(upstream.Mistral3ForConditionalGeneration, self).__init__(config)
        self.model = Mistral3Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


__all__ = [
    "Mistral3ForConditionalGeneration",
    "Mistral3Model",
]
