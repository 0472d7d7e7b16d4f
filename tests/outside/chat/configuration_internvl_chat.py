"""Configuration of a chat model: those of its two parts, and how images become tokens."""

import copy

from transformers import LlamaConfig, Qwen2Config
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import logging

from .configuration_intern_vit import InternVisionConfig

logger = logging.get_logger(__name__)


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    is_composition = True

    def __init__(
        self,
        vision_config=None,
        llm_config=None,
        select_layer=-1,
        force_image_size=None,
        downsample_ratio=0.5,
        template="plain",
        ps_version="v2",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if vision_config is None:
            vision_config = {"architectures": ["InternVisionModel"]}
            logger.info("vision_config is None: the defaults are used.")
        if llm_config is None:
            llm_config = {"architectures": ["Qwen2ForCausalLM"]}
            logger.info("llm_config is None: the defaults are used.")

        self.vision_config = InternVisionConfig(**vision_config)
        architecture = llm_config.get("architectures", ["Qwen2ForCausalLM"])[0]
        if architecture == "LlamaForCausalLM":
            self.llm_config = LlamaConfig(**llm_config)
        elif architecture == "Qwen2ForCausalLM":
            self.llm_config = Qwen2Config(**llm_config)
        else:
            raise ValueError(f"Unsupported architecture: {architecture}")
        self.select_layer = select_layer
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.template = template
        self.ps_version = ps_version

    def to_dict(self):
        output = copy.deepcopy(self.__dict__)
        output["vision_config"] = self.vision_config.to_dict()
        output["llm_config"] = self.llm_config.to_dict()
        output["model_type"] = self.__class__.model_type
        output["select_layer"] = self.select_layer
        return output
