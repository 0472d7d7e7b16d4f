"""Waves and spectrograms, in each of the layouts that models take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .facts import Facts
from .request import Request

Inputs = dict[str, Any]
NAMES = ("input_features", "audio_mel", "mel_spectrogram", "spectrogram", "input_values")
"""Parameters that take spectrograms."""
_MASKS = (
    "input_features_mask",
    "feature_attention_mask",
    "audio_attention_mask",
    "audio_mel_mask",
    "input_values_mask",
)
_BINS = ("num_mel_bins", "n_mels", "feature_size", "input_feat_per_channel", "input_feat_size", "mel_dim", "feature_dim", "input_dim", "num_freq_bins", "input_size", "input_channels")  # fmt: skip
_FRAMES = (64, 100, 128, 200, 400)
_SAMPLES = (2000, 7680, 16000)


def feature_inputs(facts: Facts, request: Request, seed: int) -> Iterator[Inputs]:
    """Spectrograms of all samples' clips: [clips, bins, frames] or [clips, frames, bins], and masks of the frames."""
    total = request.batch * max(1, request.audios or 1)
    bins = [value for name in _BINS if isinstance(value := facts.find(name, within="audio") or facts.find(name), int)]
    positions = facts.find("max_source_positions", within="audio") or facts.find("max_source_positions")
    own = facts.find("max_length", "max_audio_length") if facts.takes("input_values") else None
    name = next(each for each in NAMES if facts.takes(each))
    lengths = request.audio_lengths or tuple(
        dict.fromkeys(
            [
                *([2 * positions] if isinstance(positions, int) else []),
                *([own] if isinstance(own, int) else []),
                *_FRAMES,
            ]
        )
    )
    for size in dict.fromkeys([*bins, 80, 128, 160]):
        for frames in lengths if not request.audio_lengths else [max(lengths)]:
            valid = (
                [request.audio_lengths[place % len(request.audio_lengths)] for place in range(total)]
                if request.audio_lengths
                else [frames] * total
            )
            mask = (torch.arange(frames)[None] < torch.tensor(valid)[:, None]).long()
            for turned in (False, True):
                shape = (total, frames, size) if turned else (total, size, frames)
                values = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 3))
                yield {name: values, **masks(facts, mask)}
                if len(set(valid)) == 1 and masks(facts, mask):
                    yield {name: values}
                if masks(facts, mask):
                    yield {name: values, **masks(facts, mask.bool())}
            if facts.takes("is_longer"):
                values = torch.randn(total, 1, frames, size, generator=torch.Generator().manual_seed(seed + 3))
                yield {name: values, "is_longer": torch.zeros(total, 1, dtype=torch.bool)}


def wave_inputs(facts: Facts, request: Request, seed: int) -> Iterator[Inputs]:
    """Waves of all samples' clips: [clips, samples] or [clips, channels, samples]."""
    total = request.batch * max(1, request.audios or 1)
    for samples in [max(request.audio_lengths)] if request.audio_lengths else _SAMPLES:
        values = torch.randn(total, samples, generator=torch.Generator().manual_seed(seed + 3))
        valid = (
            [request.audio_lengths[place % len(request.audio_lengths)] for place in range(total)]
            if request.audio_lengths
            else [samples] * total
        )
        mask = (torch.arange(samples)[None] < torch.tensor(valid)[:, None]).long()
        more = {} if len(set(valid)) == 1 else {"attention_mask": mask}
        yield {"input_values": values, **more}
        yield {"input_values": values[:, None], **({"padding_mask": mask[:, None]} if len(set(valid)) > 1 else {})}
        if facts.takes("padding_mask"):
            yield {"input_values": values[:, None], "padding_mask": mask}


def masks(facts: Facts, mask: torch.Tensor) -> Inputs:
    """Masks of frames [clips, frames] under each name that the forward has for them."""
    found: Inputs = {}
    for name in _MASKS:
        if facts.takes(name):
            found[name] = mask == 0 if name == "audio_mel_mask" else mask  # of padding, not of frames
    if facts.takes("attention_mask") and not facts.takes("input_ids", "decoder_input_ids"):
        found["attention_mask"] = mask
    if facts.takes("padding_mask") and not facts.takes("input_values"):
        found["padding_mask"] = mask
    if facts.takes("audio_feature_lengths"):
        found["audio_feature_lengths"] = mask.sum(-1)
    return found
