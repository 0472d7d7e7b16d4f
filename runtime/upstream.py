# SPDX-License-Identifier: Apache-2.0
"""Makes subclasses outside of Transformers pass for the classes they subclass, where Transformers asks."""

from typing import Any, Self

from .encoders import require_encoder
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


def _upstream(cls: type) -> Any:
    """The nearest class that isn't generated: upstream's; or `cls` itself, if a user subclassed a generated class."""
    from transformers import PreTrainedModel

    for each in cls.__mro__:
        if issubclass(each, PreTrainedModel) and AsUpstream not in each.__bases__:
            return each
    raise TypeError(f"{cls.__module__}.{cls.__qualname__} isn't a subclass of PreTrainedModel.")
