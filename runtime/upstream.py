# SPDX-License-Identifier: Apache-2.0
"""Makes subclasses outside of Transformers pass for the classes they subclass, where Transformers asks."""

from typing import Any, Self

import torch

from .encoders import require_encoder
from .own_code import copy_code
from .settings import CapturesOptions


class AsUpstream(CapturesOptions):
    """Mixin of generated subclasses of `PreTrainedModel`; first in the bases of each.

    Transformers looks at the module of a model's class in three places. For a class outside of its package it would
    skip the conversion of checkpoints (and load wrong weights with no more than a warning), and would pick slower
    attention and experts. There, this answers as the nearest upstream class does.
    """

    @classmethod
    def is_custom_code(cls) -> bool:
        """See `PreTrainedModel.is_custom_code`."""
        upstream = _upstream(cls)
        own: Any = super()
        return bool((own if upstream is cls else upstream).is_custom_code())

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # Asked of the upstream class, so that the answer is cached there and not on this one.
        upstream = _upstream(cls)
        own: Any = super()
        return bool((own if upstream is cls else upstream)._can_set_attn_implementation())

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        upstream = _upstream(cls)
        own: Any = super()
        return bool((own if upstream is cls else upstream)._can_set_experts_implementation())

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """See `PreTrainedModel.save_pretrained`. A model whose config refers to code of its own gets that code beside it."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        copy_code(self, save_directory)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """See `PreTrainedModel.from_pretrained`. The options of the moment are captured: see `options`.

        Raises:
            EncoderNotFoundError: The options ask for compiled encoders, and the model has none.
        """
        loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        # With `output_loading_info=True` it is a pair of the model and the info.
        require_encoder(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded  # type: ignore[no-any-return]

    def _valid_auto_compile_criteria(self, model_kwargs: dict[str, Any], generation_config: Any) -> bool:
        # Asked by `generate`, which compiles a model for static caches itself, unless its user says how.
        from .generation import decodes_itself, steps_by_block

        own: Any = super()
        if not own._valid_auto_compile_criteria(model_kwargs, generation_config):
            return False
        if generation_config.compile_config is not None:
            return True
        return not decodes_itself(self, model_kwargs) and not steps_by_block(self)

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        # `generate`'s loop over tokens.
        from .generation import decodes_itself, run_ahead

        own: Any = super()
        if decodes_itself(self, kwargs):
            return run_ahead(own._sample.__func__, kwargs)(self, *args, **kwargs)
        return own._sample(*args, **kwargs)

    def create_masks_for_generate(self, *args: Any, **kwargs: Any) -> Any:
        """See `create_masks_for_generate` in transformers/masking_utils.py: `generate` asks for a step's mask.

        For a step that the decoder's region replays it is the mask of tokens as it is: the decoder makes of it the same
        mask as a part of what is replayed, where here it would be some dozens of kernels in every step.
        """
        from transformers.masking_utils import create_masks_for_generate

        from .generation import decodes_itself

        inherited: Any = super()
        own = inherited.create_masks_for_generate if _makes_masks(type(self)) else None
        embeds = kwargs.get("inputs_embeds")
        if own is None and embeds is not None and embeds.shape[1] == 1:
            if decodes_itself(self, kwargs):
                return kwargs.get("attention_mask")
        return (create_masks_for_generate if own is None else own)(*args, **kwargs)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # untyped in PyTorch
def _makes_masks(cls: type) -> bool:
    """Whether upstream's class makes the masks of `generate` in its own way. Dynamo calls it: it can't look a name up in
    `super()` that may not be there."""
    below = cls.__mro__[cls.__mro__.index(AsUpstream) + 1 :]
    return any("create_masks_for_generate" in vars(each) for each in below)


def _upstream(cls: type) -> Any:
    """The nearest class that isn't generated: upstream's; or `cls` itself, if a user subclassed a generated class."""
    from transformers import PreTrainedModel

    for each in cls.__mro__:
        if issubclass(each, PreTrainedModel) and AsUpstream not in each.__bases__:
            return each
    raise TypeError(f"{cls.__module__}.{cls.__qualname__} isn't a subclass of PreTrainedModel.")
