"""Tokens, masks, and what goes with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .facts import Facts
from .request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """Tokens that stand for a modality in one sample: `count` times `token`, between `start` and `end` where there are any."""

    token: int
    count: int
    type: int
    """In `mm_token_type_ids`: 1 image, 2 video, 3 audio."""
    start: int | None = None
    end: int | None = None


def plain_ids(facts: Facts, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random ids of tokens that mean nothing special."""
    size = facts.vocabulary()
    special = facts.special_ids()
    plain = [each for each in range(min(3, size - 1), size) if each not in special] or list(range(size))
    return torch.tensor(plain)[torch.randint(len(plain), shape, generator=generator)]


def tokens(
    facts: Facts, request: Request, inserts: list[list[Insert]], generator: torch.Generator
) -> dict[str, Tensor]:
    """`input_ids` [batch, sequence], and where asked for or taken `attention_mask` and `mm_token_type_ids`, the same shape."""
    batch = request.batch
    text = plain_ids(facts, (batch, request.length), generator)
    rows: list[list[int]] = []
    types: list[list[int]] = []
    for sample in range(batch):
        row, kinds = [int(text[sample, 0])], [0]
        for insert in inserts[sample]:
            row += [insert.start] if insert.start is not None else []
            kinds += [0] * (len(row) - len(kinds))
            row += [insert.token] * insert.count
            kinds += [insert.type] * insert.count
            row += [insert.end] if insert.end is not None else []
            kinds += [0] * (len(row) - len(kinds))
        row += text[sample, 1:].tolist()
        kinds += [0] * (len(row) - len(kinds))
        rows.append(row)
        types.append(kinds)
    longest = max(map(len, rows))
    side = request.padding or "left"
    pad = facts.find("pad_token_id", within="text")
    pad = pad if isinstance(pad, int) and 0 <= pad < facts.vocabulary() else 0
    cut = [
        0 if request.padding is None else min(request.length - 2, sample * (1 + request.length // 4))
        for sample in range(batch)
    ]
    ids = torch.full((batch, longest), pad)
    mask = torch.zeros(batch, longest, dtype=torch.long)
    kinds_tensor = torch.zeros(batch, longest, dtype=torch.long)
    for sample, row in enumerate(rows):
        kept = len(row) - max(0, cut[sample])
        place = slice(longest - kept, longest) if side == "left" else slice(0, kept)
        ids[sample, place] = torch.tensor(row[:kept])
        mask[sample, place] = 1
        kinds_tensor[sample, place] = torch.tensor(types[sample][:kept])
    made = {"input_ids": ids}
    if request.padding is not None or not bool(mask.all()):
        made["attention_mask"] = mask
    for name in ("mm_token_type_ids", "moe_mm_token_type_ids"):
        if facts.takes(name) and any(inserts):
            made[name] = kinds_tensor
    return made
