# SPDX-License-Identifier: Apache-2.0
"""Products of one row with several matrices, as one Triton kernel: what a decode step at batch 1 spends its time on.

Such a product reads every weight once, so it can be as fast as the memory. cuBLAS reaches a third to two thirds of that, and
takes a launch for each matrix. Imported where a GPU is used: Triton comes with PyTorch's CUDA builds.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .decode_passes import MAX_MATRICES

# Output rows of one program, columns that it reads at a time, and its warps: a thread waits for much at once. The fastest for
# every matrix of a layer, short rows and long (docs/benchmarks/h100.md).
_SHORT, _LONG = (2, 2048, 2), (2, 4096, 4)


@triton.jit  # type: ignore[untyped-decorator]
def _block(  # type: ignore[no-untyped-def] # Triton reads annotations
    x,
    weight,
    bias,
    out,
    block,
    rows,
    columns,
    stride,
    HAS_BIAS: tl.constexpr,  # noqa: N803 (Triton's habit)
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    row = block * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    start_of_row = weight + row.to(tl.int64)[:, None] * stride
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        is_column = column < columns
        vector = tl.load(x + column, mask=is_column, other=0.0).to(tl.float32)
        # Each weight is read once in a step: nothing is gained by keeping it in the cache.
        matrix = tl.load(
            start_of_row + column[None, :],
            mask=is_row[:, None] & is_column[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        sums += vector[None, :] * matrix.to(tl.float32)
    result = tl.sum(sums, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=is_row)


@triton.jit  # type: ignore[untyped-decorator]
def _row_kernel(  # type: ignore[no-untyped-def]
    x,
    weight_0,
    weight_1,
    weight_2,
    bias_0,
    bias_1,
    bias_2,
    out_0,
    out_1,
    out_2,
    rows_0,
    rows_1,
    rows_2,
    columns,
    stride_0,
    stride_1,
    stride_2,
    HAS_BIAS: tl.constexpr,  # noqa: N803
    COUNT: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    block = tl.program_id(0)
    blocks_0 = tl.cdiv(rows_0, ROWS)
    blocks_1 = tl.cdiv(rows_1, ROWS)
    if block < blocks_0:
        _block(x, weight_0, bias_0, out_0, block, rows_0, columns, stride_0, HAS_BIAS, ROWS, COLUMNS)
    if COUNT > 1:
        block -= blocks_0
        if (block >= 0) & (block < blocks_1):
            _block(x, weight_1, bias_1, out_1, block, rows_1, columns, stride_1, HAS_BIAS, ROWS, COLUMNS)
    if COUNT > 2:
        block -= blocks_1
        if block >= 0:
            _block(x, weight_2, bias_2, out_2, block, rows_2, columns, stride_2, HAS_BIAS, ROWS, COLUMNS)


def multiply_row(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    blocking: tuple[int, int, int] | None = None,
) -> None:
    """One row by the transpose of each matrix, plus its bias, into `outputs`. Sums are in fp32.

    Args:
        x: `in_features` contiguous elements, of any shape, in half precision.
        weights: One to `MAX_MATRICES` of (out_features, in_features), of the same dtype; rows are contiguous.
        biases: (out_features,) for each matrix, or none at all.
        outputs: `out_features` contiguous elements for each matrix.
        blocking: Output rows of a program, columns that it reads at a time, and its warps.
    """
    rows = [weight.shape[0] for weight in weights]
    columns = weights[0].shape[1]
    block_rows, block_columns, warps = blocking or (_LONG if columns > _SHORT[1] else _SHORT)
    count = len(weights)
    # Arguments of matrices that there aren't: read by nobody.
    absent = MAX_MATRICES - count
    own_biases = list(biases) or [x] * count
    _row_kernel[(sum(triton.cdiv(each, block_rows) for each in rows),)](
        x,
        *weights,
        *[x] * absent,
        *own_biases,
        *[x] * absent,
        *outputs,
        *[x] * absent,
        *rows,
        *[0] * absent,
        columns,
        *(weight.stride(0) for weight in weights),
        *[0] * absent,
        HAS_BIAS=bool(biases),
        COUNT=count,
        ROWS=block_rows,
        COLUMNS=block_columns,
        num_warps=warps,
    )
