# SPDX-License-Identifier: Apache-2.0
# Copyright 2023 the HuggingFace Inc. team. All rights reserved.
#
# Written by vgen from transformers/models/llava/modeling_llava.py. Do not edit: `vgen build llava`
# writes it again, `vgen explain llava` says why each class is here.
"""Compiled subclasses of Transformers' llava models."""

from torch import nn
from transformers.models.auto import AutoModel
from transformers.models.llava import modeling_llava as upstream
from transformers.models.llava.configuration_llava import LlavaConfig

from vgen.runtime import AsUpstream, child_from_config


class LlavaModel(AsUpstream, upstream.LlavaModel):
    def __init__(self, config: LlavaConfig):
        super(upstream.LlavaModel, self).__init__(config)
        self.vision_tower = child_from_config(AutoModel, config.vision_config, package=__package__)

        self.multi_modal_projector = upstream.LlavaMultiModalProjector(config)
        self.language_model = child_from_config(AutoModel, config.text_config, package=__package__)
        self.post_init()


class LlavaForConditionalGeneration(AsUpstream, upstream.LlavaForConditionalGeneration):
    def __init__(self, config: LlavaConfig):
        super(upstream.LlavaForConditionalGeneration, self).__init__(config)
        self.model = LlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


__all__ = [
    "LlavaForConditionalGeneration",
    "LlavaModel",
]
