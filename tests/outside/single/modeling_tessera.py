"""A vision encoder on its own, with its configuration in the same file."""

import torch
import transformers
from torch import nn
from transformers.utils.deprecation import deprecate_kwarg


class TesseraConfig(transformers.PretrainedConfig):
    model_type = "tessera"

    def __init__(self, width=32, depth=3, heads=4, patch=4, image=32, **kwargs):
        self.width, self.depth, self.heads, self.patch, self.image = width, depth, heads, patch, image
        super().__init__(**kwargs)


class TesseraBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mlp = nn.Sequential(nn.Linear(config.width, 64), nn.GELU(), nn.Linear(64, config.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


class TesseraPreTrainedModel(transformers.PreTrainedModel):
    config_class = TesseraConfig
    main_input_name = "pixel_values"
    base_model_prefix = "tessera"


class TesseraModel(TesseraPreTrainedModel):
    def __init__(self, config: TesseraConfig):
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.blocks = nn.ModuleList(TesseraBlock(config) for _ in range(config.depth))
        self.post_init()

    @deprecate_kwarg("images", version="99.0", new_name="pixel_values")
    def forward(self, pixel_values: torch.FloatTensor) -> torch.Tensor:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x


class TesseraForImageClassification(TesseraPreTrainedModel):
    def __init__(self, config: TesseraConfig):
        super().__init__(config)
        self.tessera = TesseraModel(config)
        self.head = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor) -> torch.Tensor:
        return self.head(self.tessera(pixel_values).mean(dim=1))
