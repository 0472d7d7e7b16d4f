"""Parameters of a forward that aren't text, images or audio: one rule for each name, where the forward needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .facts import Facts
from .images import channels, default_size, noise, patch
from .request import Request
from .text import plain_ids

Maker = Callable[[Facts, Request, torch.Generator], Any]


def _boxes(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    """Boxes [batch, sequence, 4] on a page of 1000 × 1000, or of the config's size: left, top, right, bottom."""
    limit = min(1000, int(facts.find("max_2d_position_embeddings", default=1024)) - 1)
    corners = torch.randint(0, limit // 2, (request.batch, request.length, 2), generator=generator)
    extent = torch.randint(1, limit // 2, (request.batch, request.length, 2), generator=generator)
    return torch.cat([corners, corners + extent], -1)


def _past(facts: Facts) -> int:
    context = facts.find("context_length", "prediction_length", default=8)
    lags = facts.find("lags_sequence", default=[0])
    return int(context) + (max(lags) if isinstance(lags, list | tuple) and lags else 0)


def _series(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    size = int(facts.find("num_input_channels", "input_size", default=1))
    shape = (request.batch, _past(facts)) + ((size,) if size > 1 or facts.find("num_input_channels") else ())
    return torch.randn(shape, generator=generator)


def _time_features(facts: Facts, length: int, request: Request, generator: torch.Generator) -> Tensor:
    return torch.randn(request.batch, length, int(facts.find("num_time_features", default=0)), generator=generator)


def _text(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    return plain_ids(facts, (request.batch, request.length), generator)


def _ones(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    return torch.ones(request.batch, request.length, dtype=torch.long)


def _hidden(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    width = int(facts.find("input_dim", "hidden_size", "d_model", "n_embd", default=32))
    return torch.randn(request.batch, request.length, width, generator=generator)


def _prompt_pixels(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    return noise((request.batch, channels(facts), *default_size(facts)), generator)


def _encoder_hidden(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    width = int(facts.find("encoder_hidden_size", "cross_attention_hidden_size", "hidden_size", "d_model", default=32))
    return torch.randn(request.batch, 7, width, generator=generator)


def _feats(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    return torch.randn(
        request.batch, 5, int(facts.find("visual_feat_dim", "visual_embedding_dim", default=32)), generator=generator
    )


def _embeds_mask(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    count = int(facts.find("latent_query_num", default=0))
    return torch.tensor([[1] * min(count, request.length) + [0] * max(0, request.length - count)] * request.batch)


def _query_embeds(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    return torch.randn(request.batch, 8, int(facts.find("hidden_size", default=32)), generator=generator)


def _masked(facts: Facts, request: Request, generator: torch.Generator) -> Tensor:
    height, width = default_size(facts)
    frames = int(facts.find("num_frames", default=1)) // int(facts.find("tubelet_size", default=1) or 1)
    count = max(1, frames) * (height // patch(facts)) * (width // patch(facts))
    return (torch.arange(count) % 2 == 0)[None].expand(request.batch, -1)


def _vectors(*fields: str) -> Maker:
    """One vector a step [batch, sequence, width]; `fields` say how wide, 1 where there is none."""
    return lambda f, r, g: torch.randn(
        r.batch, r.length, int(f.find(*fields, default=1)) if fields else 1, generator=g
    )


NEEDED: dict[str, Maker] = {
    "inputs": _vectors("d_model", "hidden_size"),
    "states": _vectors("state_dim"),
    "actions": _vectors("act_dim"),
    "rewards": _vectors(),
    "returns_to_go": _vectors(),
    "timesteps": lambda f, r, g: torch.arange(r.length).expand(r.batch, -1),
    "bbox": _boxes,
    "past_values": _series,
    "past_time_features": lambda f, r, g: _time_features(f, _past(f), r, g),
    "past_observed_mask": lambda f, r, g: torch.ones_like(_series(f, r, g)),
    "past_values_padding": lambda f, r, g: torch.zeros(r.batch, _past(f)),
    "future_values": lambda f, r, g: _series(f, r, g)[:, : int(f.find("prediction_length", default=4))],
    "future_time_features": lambda f, r, g: _time_features(f, int(f.find("prediction_length", default=4)), r, g),
    "freq": lambda f, r, g: torch.zeros(r.batch, 1, dtype=torch.long),
    "qformer_input_ids": _text,
    "qformer_attention_mask": _ones,
    "input_ids": _text,
    "attention_mask": _ones,
    "decoder_input_ids": _text,
    "inputs_embeds": _hidden,
    "hidden_states": _hidden,
    "encoder_hidden_states": _encoder_hidden,
    "query_embeds": _query_embeds,
    "prompt_pixel_values": _prompt_pixels,
    "prompt_masks": _prompt_pixels,
    "bool_masked_pos": _masked,
    "task_inputs": lambda f, r, g: plain_ids(f, (r.batch, int(f.find("task_seq_len", default=8))), g),
    "visual_feats": _feats,
    "visual_pos": lambda f, r, g: torch.rand(r.batch, 5, int(f.find("visual_pos_dim", default=4)), generator=g),
    "image_embeds_position_mask": _embeds_mask,
    "context_input_ids": lambda f, r, g: plain_ids(f, (r.batch * int(f.find("n_docs", default=5)), r.length), g),
    "context_attention_mask": lambda f, r, g: torch.ones(
        r.batch * int(f.find("n_docs", default=5)), r.length, dtype=torch.long
    ),
    "doc_scores": lambda f, r, g: torch.randn(r.batch, int(f.find("n_docs", default=5)), generator=g),
    "image_attention_mask": lambda f, r, g: torch.ones(r.batch, r.length, r.images or 1, dtype=torch.long),
    "classes_input_ids": lambda f, r, g: plain_ids(f, (3 * r.batch, 5), g),
    "classes_attention_mask": lambda f, r, g: torch.ones(3 * r.batch, 5, dtype=torch.long),
    "tasks_input_ids": lambda f, r, g: plain_ids(f, (r.batch, 5), g),
    "tasks_attention_mask": lambda f, r, g: torch.ones(r.batch, 5, dtype=torch.long),
    "classes_structure": lambda f, r, g: torch.tensor([3] * r.batch),
    "codebook_idx": lambda f, r, g: 1,
    "state": lambda f, r, g: torch.randn(r.batch, int(f.find("max_state_dim", default=32)), generator=g),
    "latents": lambda f, r, g: torch.randn(
        r.batch, r.length, int(f.find("latent_dim", "hidden_size", default=32)), generator=g
    ),
    "mask": lambda f, r, g: None,
    # Two questions of two options each, at these places of the prompt.
    "marks": lambda f, r, g: torch.tensor([[3, r.length]] * r.batch),
    "num_options": lambda f, r, g: torch.tensor([[2, 2]] * r.batch),
    "question_type_ids": lambda f, r, g: torch.zeros(r.batch, 2, dtype=torch.long),
}
"""Makers for what a forward can't do without; `make` asks for those parameters that have no default."""
