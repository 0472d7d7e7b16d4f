# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels in Triton's interpreter, which needs no GPU but the package: PyTorch's CPU builds come without it."""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton, whose kernels these are"
)

ROWS = """
import torch
from torch.nn.functional import linear
from vgen.runtime.row_kernel import multiply_row

for columns in (64, 100, 1100):
    weights = [torch.randn(rows, columns).half() for rows in (33, 5, 8)]
    biases = [torch.randn(rows).half() for rows in (33, 5, 8)]
    x = torch.randn(1, 1, columns).half()
    for count in (1, 2, 3):
        for given in ([], biases[:count]):
            outputs = [torch.empty(1, 1, weight.shape[0]).half() for weight in weights[:count]]
            multiply_row(x, weights[:count], given, outputs)
            for weight, bias, output in zip(weights, given or [None] * count, outputs, strict=False):
                expected = linear(x.float(), weight.float(), None if bias is None else bias.float())
                torch.testing.assert_close(output.float(), expected, rtol=1e-2, atol=3e-2)
"""
QUERIES = """
import torch
from torch.nn.functional import scaled_dot_product_attention
from vgen.runtime.query_kernel import attend_in_parts

for batch, heads, queries, head_dim, length in ((1, 2, 8, 128, 640), (2, 2, 4, 64, 100), (3, 1, 1, 80, 7)):
    query = torch.randn(batch, heads, queries, head_dim).half()
    key, value = (torch.randn(batch, heads, length, head_dim).half() for _ in range(2))
    seen = torch.rand(batch, 1, 1, length) < 0.3
    seen[..., 0] = True
    added = torch.where(seen, 0.0, -1e4).half().expand(batch, 1, queries, length)
    for mask in (None, seen, added):
        out = torch.empty_like(query)
        attend_in_parts(query, key, value, mask, 0.1, out)
        wide = mask if mask is None or mask.dtype == torch.bool else mask.float()
        expected = scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=wide, scale=0.1)
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)
"""
SEGMENTS = """
import torch
from vgen.runtime.attention import _segments
from vgen.runtime.segment_kernel import attend_segments

for head_dim in (64, 80):
    lengths = [64, 60, 0, 0, 7]
    qkv = torch.randn(sum(lengths), 3, 4, head_dim).half()
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    out = torch.empty(sum(lengths), 4, head_dim).half()
    attend_segments(*qkv.unbind(1), cu_seqlens, 64, head_dim**-0.5, out)
    wide = [each.transpose(0, 1)[None].float() for each in qkv.unbind(1)]
    expected = _segments(*wide, [each for each in lengths if each], None, False)[0]
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)
"""


@pytest.mark.parametrize("source", [ROWS, QUERIES, SEGMENTS], ids=["rows", "queries", "segments"])
def test_kernel(source: str) -> None:
    # A process of its own: Triton looks at the variable once.
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
