# SPDX-License-Identifier: Apache-2.0
"""Which sizes a graph is said to hold for alone."""

from typing import Any

import pytest
import torch
from torch import fx
from torch.nn import functional

from vgen.runtime.constant_sizes import constant_sizes


def any_size(x: torch.Tensor) -> torch.Tensor:
    return functional.silu(x) * x.shape[1]


def halved(x: torch.Tensor) -> torch.Tensor:
    """An associative scan's recursion: which way it goes depends on every bit of the length."""
    if x.shape[1] < 2:
        return x
    odd = x.shape[1] % 2
    below = halved(x[:, : x.shape[1] - odd : 2])
    return below + 1 if odd else below + 2


def each_row(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, index] * index for index in range(x.shape[1])])


def one_side(x: torch.Tensor) -> torch.Tensor:
    return x + 1 if x.shape[1] > 4 else x - 1


def patches(x: torch.Tensor) -> torch.Tensor:
    if x.shape[1] % 8:
        raise ValueError("no whole patches")
    return x.unflatten(1, (x.shape[1] // 8, 8)).sum(1)


def one_block(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, index * 32 :] for index in range((x.shape[1] + 31) // 32)])


def as_long_as_a_table(x: torch.Tensor) -> torch.Tensor:
    if x.shape[1] > 64:
        raise ValueError("too long for the table")
    return x + torch.arange(64)[: x.shape[1]]


@pytest.mark.parametrize(
    ("function", "size", "expected"),
    [
        (any_size, 9, {}),
        (halved, 9, {1: 9}),
        (halved, 16, {1: 16}),
        (each_row, 9, {1: 9}),
        (one_side, 9, {}),
        (patches, 16, {}),
        (one_block, 9, {}),
        (as_long_as_a_table, 9, {}),
        (as_long_as_a_table, 64, {}),
    ],
)
def test_only_one_size(function: Any, size: int, expected: dict[int, int]) -> None:
    found: list[dict[int, int]] = []

    def backend(graph: fx.GraphModule, _: list[torch.Tensor]) -> Any:
        found.append(constant_sizes(graph)["L['x']"])
        return graph

    x = torch.randn(3, size)
    torch._dynamo.mark_static(x, 0)
    compiled = torch.compile(function, backend=backend, dynamic=True, fullgraph=True)
    assert torch.equal(compiled(x), function(x))
    assert [{dim: only for dim, only in each.items() if dim == 1} for each in found] == [expected]
