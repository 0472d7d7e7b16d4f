# SPDX-License-Identifier: Apache-2.0
"""Passes over captured graphs, on the CPU: the changed graph computes the same, and does have what the pass is for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from vgen.runtime import graph_passes
from vgen.runtime.decode_passes import ATTEND, MULTIPLY, attend_in_parts, multiply_rows
from vgen.runtime.graph_passes import LINEAR, align_matrices, flatten_patch_convolutions


def passed(function: Callable[..., Any], *arguments: torch.Tensor, run: Callable[..., Any]) -> tuple[Any, set[Any]]:
    """What a function returns when it runs as a graph that was passed through `run`, and what that graph calls."""
    torch._dynamo.reset()
    targets: set[Any] = set()

    def backend(graph: fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        run(graph, "cpu")
        targets.update(node.target for node in graph.graph.nodes)
        graph.graph.lint()
        return graph

    with torch.no_grad():
        return torch.compile(function, backend=backend, fullgraph=True, dynamic=True)(*arguments), targets


@pytest.mark.parametrize("is_roomy", [False, True])
def test_matrices_are_aligned(is_roomy: bool) -> None:
    up, down = (nn.Linear(*sizes, dtype=torch.bfloat16) for sizes in ((16, 20), (20, 8)))
    if is_roomy:
        for parameter, shape in ((up.weight, (24, 16)), (up.bias, (24,)), (down.weight, (8, 24))):
            # What lies beyond the rows doesn't matter; beyond the columns it meets zeros.
            room = torch.full(shape, 5.0, dtype=torch.bfloat16)
            view = room[tuple(map(slice, parameter.shape))]
            parameter.data = view.copy_(parameter.data)
    x = torch.randn(5, 16, dtype=torch.bfloat16)

    def mlp(x: torch.Tensor) -> torch.Tensor:
        return down(functional.silu(up(x)))

    found, targets = passed(mlp, x, run=align_matrices)
    torch.testing.assert_close(found, mlp(x), rtol=2e-2, atol=2e-2)
    assert graph_passes.ALIGNED in targets
    assert torch._C._nn.linear not in targets
    for parameter in (up.weight, down.weight):
        in_width, out_width = (graph_passes.aligned(length, 2) for length in reversed(parameter.shape))
        inputs = functional.pad(
            torch.randn(3, parameter.shape[1], dtype=torch.bfloat16), (0, in_width - parameter.shape[1])
        )
        product = graph_passes.linear_aligned(inputs, parameter, None, in_width, out_width)
        assert product.stride() == (out_width, 1)


def test_weights_of_another_dtype_than_autocasts_are_left() -> None:
    up, x = nn.Linear(18, 21), torch.randn(3, 18, dtype=torch.bfloat16)

    def project(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return up(x)

    found, targets = passed(project, x, run=align_matrices)
    assert torch.equal(found, project(x))
    assert graph_passes.ALIGNED not in targets


@pytest.mark.parametrize(("kernel", "is_flattened"), [((2, 3, 3), True), ((2, 2, 3), False)])
def test_patch_convolutions_are_products(kernel: tuple[int, ...], is_flattened: bool) -> None:
    convolution = nn.Conv3d(3, 8, kernel, stride=kernel, dtype=torch.bfloat16)
    x = torch.randn(5, 3, 2, 3, 3, dtype=torch.bfloat16)
    found, targets = passed(convolution, x, run=flatten_patch_convolutions)
    torch.testing.assert_close(found, convolution(x), rtol=2e-2, atol=2e-2)
    assert (torch.conv3d not in targets) is is_flattened


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_of_one_row_share_a_launch(rows: int, has_bias: bool) -> None:
    layers = [nn.Linear(16, size, bias=has_bias, dtype=torch.bfloat16) for size in (8, 12, 16, 16)]
    x = torch.randn(1, rows, 16, dtype=torch.bfloat16)
    torch._dynamo.mark_static(x)

    def block(x: torch.Tensor) -> torch.Tensor:
        first, second, third, fourth = (layer(x) for layer in layers)
        return torch.cat([first, second, layers[3](third + fourth)], dim=-1)

    calls: list[Any] = []

    def run(graph: fx.GraphModule, device: str) -> None:
        multiply_rows(graph, device)
        calls.extend(node for node in graph.graph.nodes if node.target is MULTIPLY)

    found, targets = passed(block, x, run=run)
    torch.testing.assert_close(found, block(x))
    # Three of the four that take the same row, the fourth, and the one after them.
    assert [len(node.args[1]) for node in calls] == ([3, 1, 1] if rows == 1 else [])
    assert (LINEAR in targets) is (rows > 1)


@pytest.mark.parametrize("queries", [1, 8, 32])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention_of_few_queries(queries: int, mask: str) -> None:
    query = torch.randn(3, 2, queries, 16, dtype=torch.bfloat16)
    key, value = (torch.randn(3, 2, 7, 16, dtype=torch.bfloat16) for _ in range(2))
    bools = torch.arange(7).view(1, 1, 1, 7) < 5
    added = torch.zeros(1, 1, 1, 7, dtype=torch.bfloat16).masked_fill(~bools, float("-inf"))
    given = {"none": None, "bool": bools, "float": added}[mask]
    for each in (query, key, value):
        for dim in (1, 2, 3):
            torch._dynamo.mark_static(each, dim)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=given, scale=0.3)

    found, targets = passed(attend, query, key, value, run=attend_in_parts)
    torch.testing.assert_close(found, attend(query, key, value))
    assert (ATTEND in targets) is (queries < 32 and mask != "none")
