# SPDX-License-Identifier: Apache-2.0
"""Whether a model has the compiled encoder that was asked for."""

from collections.abc import Iterator

from torch import nn

from .errors import EncoderNotFoundError
from .region import Compiled

# The attribute order of `PreTrainedModel.get_encoder` (transformers/modeling_utils.py), for messages.
ENCODER_ATTRIBUTES = (
    ("image and video", ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower")),
    ("audio", ("audio_tower", "audio_encoder", "speech_encoder")),
    ("text", ("text_encoder", "encoder")),
)


def require_encoder(model: nn.Module) -> None:
    """Raise if a model's options ask for compiled encoders, and no module in it is a compiled encoder.

    Raises:
        EncoderNotFoundError: Says which attributes were looked for on which classes, and what was found there.
    """
    options = model.vgen_options
    if not (options.compile and options.compile_mm_encoder):  # type: ignore[union-attr]
        return
    if any(isinstance(each, Compiled) and each.region.on_request for each in model.modules()):
        return
    holders = list(_holders(model))
    found = [
        (type(holder).__name__, name, type(child))
        for holder in holders
        for _, names in ENCODER_ATTRIBUTES
        for name in names
        if isinstance(child := getattr(holder, name, None), nn.Module)
    ]
    classes = " and ".join(f"{type(each).__module__}.{type(each).__qualname__}" for each in holders)
    attributes = "; ".join(f"{', '.join(names)} ({kind})" for kind, names in ENCODER_ATTRIBUTES)
    looked = f"compile_mm_encoder=True asks for a compiled encoder; looked for {attributes} on {classes}"
    if not found:
        raise EncoderNotFoundError(
            f"{looked}, and none of these is there. Leave compile_mm_encoder out for this model."
        )
    holder, name, kind = found[0]
    folder = kind.__module__.split(".")[-2] if kind.__module__.count(".") else kind.__module__
    raise EncoderNotFoundError(
        f"{looked}, and found {holder}.{name}, whose class {kind.__module__}.{kind.__qualname__} isn't compiled. "
        f"`vgen build {folder}` builds it where it can be, and `vgen explain {folder}` says why where it can't; or "
        f"leave compile_mm_encoder out."
    )


def _holders(model: nn.Module) -> Iterator[nn.Module]:
    yield model
    base = getattr(model, "base_model", None)
    if isinstance(base, nn.Module) and base is not model:
        yield base
