# SPDX-License-Identifier: Apache-2.0
"""Exact changes to a captured graph, for Inductor on a GPU: shapes that its matrix units like, and nothing else.

They work on the graph that Dynamo hands to a backend, where a layer is still one call and weights are inputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from .attention import NAMESPACE

# Rows of a matrix that the tensor cores' copy engine can address start at multiples of this many bytes.
ALIGNMENT = 16

HALF = (torch.float16, torch.bfloat16)
LINEAR = torch._C._nn.linear
_CONVOLUTION_DEFAULTS: tuple[Any, ...] = (None, 1, 0, 1, 1)


@torch.library.custom_op(f"{NAMESPACE}::linear_aligned", mutates_args=())
def linear_aligned(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, in_width: int, out_width: int
) -> torch.Tensor:
    """`linear` of a layer whose widths don't suit the matrix units, as the product of one with wider ones.

    Where `weights.align_rows` gave the weight a storage with room, the wider weight is a view of that; else it is copied.
    An operator, because that is seen of the memory that there is, and a graph's stand-in for the weight has none.

    Args:
        x: (rows, in_width), zero in what exceeds `in_features`.
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        in_width: At least `in_features`.
        out_width: At least `out_features`.

    Returns:
        (rows, out_features), with strides (out_width, 1).
    """
    out_features, in_features = weight.shape
    wide = _within(weight, (out_width, in_width), (in_width, 1))
    if wide is None:
        wide = functional.pad(weight, (0, in_width - in_features, 0, out_width - out_features))
    if bias is not None and out_width > out_features:
        roomy = _within(bias, (out_width,), (1,))
        bias = functional.pad(bias, (0, out_width - out_features)) if roomy is None else roomy
    # What is in the columns that exceed `out_features` doesn't matter.
    return functional.linear(x, wide, bias)[:, :out_features]


@linear_aligned.register_fake
def _linear_aligned_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, in_width: int, out_width: int
) -> torch.Tensor:
    return x.new_empty(x.shape[0], out_width)[:, : weight.shape[0]]


def _within(tensor: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor | None:
    """A view of a tensor's storage that starts where the tensor does, and is larger; None if there is no room for it."""
    if tensor.stride() != strides:
        return None
    needed = tensor.storage_offset() + shape[0] * strides[0]
    if tensor.untyped_storage().nbytes() < needed * tensor.element_size():
        return None
    return tensor.as_strided(shape, strides)


# As a graph's node calls it.
ALIGNED = getattr(torch.ops, NAMESPACE).linear_aligned.default


def align_matrices(graph: fx.GraphModule, device: str = "cuda") -> None:
    """Align the widths of matrix products in half precision: without gradients, and in place.

    An intermediate size of 3420 makes the products of an MLP three times as slow as one of 3424. So the layers' products
    are those of wider weights, with zeros in what exceeds the real ones. Zeros add nothing.
    """
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not LINEAR or node.kwargs:
            continue
        x, weight, bias = (*node.args, None)[:3]
        value, matrix = value_of(x), value_of(weight)
        if value is None or matrix is None or value.device.type != device or value.dtype not in HALF:
            continue
        # Under autocast a weight may be of another dtype, which the product takes care of.
        if matrix.dtype != value.dtype:
            continue
        out_features, in_features = matrix.shape
        out_width, in_width = (aligned(length, matrix.element_size()) for length in matrix.shape)
        if value.ndim != 2 or (out_width, in_width) == (out_features, in_features):
            continue
        with graph.graph.inserting_before(node):
            if in_width > in_features:
                x = call(graph, functional.pad, x, (0, in_width - in_features))
            product = call(graph, ALIGNED, x, weight, bias, in_width, out_width)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    graph.recompile()


def aligned(length: int, element_size: int) -> int:
    """A row's length, rounded up to `ALIGNMENT` bytes."""
    return length + -length % (ALIGNMENT // element_size)


def flatten_patch_convolutions(graph: fx.GraphModule, device: str = "cuda") -> None:
    """Make a convolution whose one window is the whole input what it is: a matrix product, in place.

    Patches come to a vision encoder already cut; cuDNN runs the convolution of each with itself at a fiftieth of the
    speed of the product.
    """
    convolutions: dict[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in convolutions or node.kwargs:
            continue
        args: tuple[Any, ...] = (*node.args, *_CONVOLUTION_DEFAULTS[len(node.args) - 2 :])
        # The stride says nothing where there is one window.
        x, weight, bias, _, padding, dilation, groups = args
        value, kernel = value_of(x), value_of(weight)
        # In fp32 cuDNN rounds to tf32, by PyTorch's default: what is exact would differ from upstream.
        if value is None or kernel is None or value.dtype not in HALF:
            continue
        if value.device.type != device or groups != 1 or not is_each(padding, 0):
            continue
        spatial = convolutions[node.target]
        if value.ndim != spatial + 2 or tuple(value.shape[1:]) != tuple(kernel.shape[1:]) or not is_each(dilation, 1):
            continue
        with graph.graph.inserting_before(node):
            rows, matrix = (call(graph, torch.flatten, each, 1) for each in (x, weight))
            product = call(graph, LINEAR, rows, matrix, bias)
            for _ in range(spatial):
                product = call(graph, torch.unsqueeze, product, -1)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    graph.recompile()


def value_of(node: Any) -> torch.Tensor | None:
    """The fake tensor that stands for a node's result."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


def call(graph: fx.GraphModule, function: Callable[..., Any], *args: Any) -> fx.Node:
    """Insert a call. It gets no fake result: to compute one here could fix sizes that are dynamic."""
    return graph.graph.call_function(function, args)


def is_each(value: Any, wanted: int) -> bool:
    values = value if isinstance(value, tuple | list) else (value,)
    return all(type(each) is int and each == wanted for each in values)
