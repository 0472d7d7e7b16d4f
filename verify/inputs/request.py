"""What inputs are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class CannotMakeInputsError(Exception):
    """No inputs as asked for could be made for the model; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The inputs of one call. What the model doesn't take at all is left out; what it takes but not so is an error."""

    batch: int = 2
    """Samples."""
    length: int = 11
    """Tokens of text in a sample, padding included; those that stand for images, videos and audio come on top."""
    padding: Literal["left", "right"] | None = None
    """The side on which all samples but the first are padded, each by another amount; None: no mask is given."""
    seed: int = 0
    images: int | None = None
    """Images per sample. None: one where the model takes any and runs so, else none."""
    image_sizes: tuple[tuple[int, int], ...] = ()
    """Heights and widths of the images in pixels, one after the other, starting again at the end. Rounded up to what the
    model takes (whole patches). Empty: the config's size."""
    videos: int = 0
    """Videos per sample."""
    frames: int = 4
    """Frames of a video, where the config doesn't fix them."""
    audios: int | None = None
    """Audio clips per sample. None: one where the model takes any and runs so, else none."""
    audio_lengths: tuple[int, ...] = ()
    """Lengths of the clips: frames of a spectrogram, or samples of a wave. Empty: the shortest usual one that runs."""
    embeds: bool = False
    """Give `inputs_embeds` in place of `input_ids`."""
    labels: bool = False
    """Give `labels`, so that the model returns a loss."""
