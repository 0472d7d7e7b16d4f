# SPDX-License-Identifier: Apache-2.0
"""Attention of few query tokens to many keys, as two Triton kernels: what a decode step with a static cache does.

PyTorch's kernel for attention with a mask gives one processor all keys of a head, so a step at batch 1 keeps as many of a
GPU's processors busy as there are key-value heads. Here each reads some of the keys, and a second kernel adds up. Imported
where a GPU is used: Triton comes with PyTorch's CUDA builds.
"""

import math

import torch
import triton
import triton.language as tl

from .decode_passes import MAX_QUERIES

# Keys of a tile, and programs that keep all processors busy.
_KEYS = 64
_PROGRAMS = 264
_MAX_PARTS = 64


@triton.jit  # type: ignore[untyped-decorator]
def _part_kernel(  # type: ignore[no-untyped-def] # Triton reads annotations
    query,
    key,
    value,
    mask,
    attended,
    best_out,
    total_out,
    scale_log2,
    length,
    part_length,
    heads,
    query_batch,
    query_head,
    query_token,
    key_batch,
    key_head,
    key_token,
    value_batch,
    value_head,
    value_token,
    mask_batch,
    mask_head,
    mask_query,
    mask_key,
    QUERIES: tl.constexpr,  # noqa: N803 (Triton's habit)
    ROWS: tl.constexpr,  # noqa: N803
    HEAD_DIM: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    KEYS: tl.constexpr,  # noqa: N803
    MASK: tl.constexpr,  # noqa: N803 (0: none, 1: of booleans, 2: added)
):
    pair = tl.program_id(0)
    part = tl.program_id(1)
    batch = (pair // heads).to(tl.int64)
    head = pair % heads
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    is_row = rows < QUERIES
    is_dim = dims < HEAD_DIM
    q = tl.load(
        query + batch * query_batch + head * query_head + rows[:, None] * query_token + dims[None, :],
        mask=is_row[:, None] & is_dim[None, :],
        other=0.0,
    )
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, DIM), tl.float32)
    begin = part * part_length
    end = tl.minimum(begin + part_length, length)
    for start in range(begin, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        is_key = keys < end
        inside = is_key[:, None] & is_dim[None, :]
        k = tl.load(
            key + batch * key_batch + head * key_head + keys[:, None] * key_token + dims[None, :],
            mask=inside,
            other=0.0,
        )
        v = tl.load(
            value + batch * value_batch + head * value_head + keys[:, None] * value_token + dims[None, :],
            mask=inside,
            other=0.0,
        )
        scores = tl.dot(q, tl.trans(k)) * scale_log2
        if MASK > 0:
            told = tl.load(
                mask + batch * mask_batch + head * mask_head + rows[:, None] * mask_query + keys[None, :] * mask_key,
                mask=is_row[:, None] & is_key[None, :],
                other=0,
            )
            if MASK == 1:
                scores = tl.where(told != 0, scores, float("-inf"))
            else:
                scores += told.to(tl.float32) * 1.4426950408889634
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        # A part may hold nothing that a query sees.
        shift = tl.where(new_best == float("-inf"), 0.0, new_best)
        weights = tl.exp2(scores - shift[:, None])
        kept = tl.exp2(best - shift)
        total = total * kept + tl.sum(weights, axis=1)
        sums = sums * kept[:, None] + tl.dot(weights.to(v.dtype), v)
        best = new_best
    place = (pair * tl.num_programs(1) + part) * QUERIES + rows
    tl.store(best_out + place, best, mask=is_row)
    tl.store(total_out + place, total, mask=is_row)
    tl.store(attended + place[:, None] * HEAD_DIM + dims[None, :], sums, mask=is_row[:, None] & is_dim[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(  # type: ignore[no-untyped-def]
    attended,
    best_in,
    total_in,
    out,
    parts,
    QUERIES: tl.constexpr,  # noqa: N803
    HEAD_DIM: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    PARTS: tl.constexpr,  # noqa: N803
):
    pair = tl.program_id(0)
    row = tl.program_id(1)
    part = tl.arange(0, PARTS)
    dims = tl.arange(0, DIM)
    is_part = part < parts
    is_dim = dims < HEAD_DIM
    place = (pair * parts + part) * QUERIES + row
    best = tl.load(best_in + place, mask=is_part, other=float("-inf"))
    total = tl.load(total_in + place, mask=is_part, other=0.0)
    shift = tl.max(best, axis=0)
    weights = tl.exp2(best - tl.where(shift == float("-inf"), 0.0, shift))
    sums = tl.load(
        attended + place[:, None] * HEAD_DIM + dims[None, :], mask=is_part[:, None] & is_dim[None, :], other=0.0
    )
    divisor = tl.sum(weights * total, axis=0)
    result = tl.sum(sums * weights[:, None], axis=0) / tl.where(divisor == 0.0, 1.0, divisor)
    tl.store(out + (pair * QUERIES + row) * HEAD_DIM + dims, result.to(out.dtype.element_ty), mask=is_dim)


def attend_in_parts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    out: torch.Tensor,
) -> None:
    """Attention of few query tokens, into `out`. Scores, softmax and sums are in fp32.

    Args:
        query: (batch, heads, queries, head_dim), the last dimension contiguous, at most `MAX_QUERIES` queries.
        key: (batch, heads, kv_length, head_dim), likewise.
        value: (batch, heads, kv_length, head_dim), likewise.
        mask: Broadcasts to (batch, heads, queries, kv_length): booleans that say what is seen, or floating numbers that are
            added to the scores. A query that sees nothing gets zeros.
        scale: Factor on the scores.
        out: (batch, heads, queries, head_dim), contiguous.
    """
    batch, heads, queries, head_dim = query.shape
    length = key.shape[2]
    pairs = batch * heads
    tiles = triton.cdiv(length, _KEYS)
    wanted = max(1, min(tiles, _MAX_PARTS, triton.cdiv(_PROGRAMS, pairs)))
    part_length = triton.cdiv(tiles, wanted) * _KEYS
    parts = triton.cdiv(length, part_length)
    attended = query.new_empty((pairs, parts, queries, head_dim), dtype=torch.float32)
    best, total = (query.new_empty((pairs, parts, queries), dtype=torch.float32) for _ in range(2))
    dim = max(16, triton.next_power_of_2(head_dim))
    kind, told, strides = 0, query, [0] * 4
    if mask is not None:
        told = mask.expand(batch, heads, queries, length)
        kind, strides = (1 if mask.dtype == torch.bool else 2), list(told.stride())
    _part_kernel[(pairs, parts)](
        query,
        key,
        value,
        told,
        attended,
        best,
        total,
        scale / math.log(2),
        length,
        part_length,
        heads,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *strides,
        QUERIES=queries,
        ROWS=MAX_QUERIES,
        HEAD_DIM=head_dim,
        DIM=dim,
        KEYS=_KEYS,
        MASK=kind,
        num_warps=4,
    )
    _sum_kernel[(pairs, queries)](
        attended,
        best,
        total,
        out,
        parts,
        QUERIES=queries,
        HEAD_DIM=head_dim,
        DIM=dim,
        PARTS=triton.next_power_of_2(parts),
        num_warps=4,
    )
