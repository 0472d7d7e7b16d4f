# SPDX-License-Identifier: Apache-2.0
"""Changes to the captured graph of a decode step, for a GPU: kernels that read weights and keys as fast as the memory is.

Like `graph_passes`, they work on the graph that Dynamo hands to a backend. On a GPU a step's results differ from upstream's by
rounding in any case, since other kernels run: sums are in fp32 here and there.
"""

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional

from .attention import NAMESPACE
from .graph_passes import HALF, LINEAR, call, is_each, value_of

# What the kernels take: matrices of one launch, and query tokens of one head, a tile of the matrix units.
MAX_MATRICES = 3
MAX_QUERIES = 16
MAX_HEAD_DIM = 256


@torch.library.custom_op(f"{NAMESPACE}::multiply_one_row", mutates_args=())
def multiply_one_row(x: torch.Tensor, weights: list[torch.Tensor], biases: list[torch.Tensor]) -> list[torch.Tensor]:
    """`linear` of one row with several layers.

    Args:
        x: (1, …, 1, in_features).
        weights: (out_features, in_features) of each layer.
        biases: (out_features,) of each layer, or none at all.

    Returns:
        (1, …, 1, out_features) of each layer.
    """
    if not x.is_cuda or any(weight.stride(1) != 1 for weight in weights):
        given: list[Any] = list(biases) or [None] * len(weights)
        return [functional.linear(x, weight, bias) for weight, bias in zip(weights, given, strict=True)]
    from .row_kernel import multiply_row

    outputs = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    multiply_row(x.contiguous(), weights, biases, outputs)
    return outputs


@multiply_one_row.register_fake
def _multiply_one_row_fake(
    x: torch.Tensor, weights: list[torch.Tensor], biases: list[torch.Tensor]
) -> list[torch.Tensor]:
    return [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]


@torch.library.custom_op(f"{NAMESPACE}::attend_few_queries", mutates_args=())
def attend_few_queries(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention of few query tokens.

    Args:
        query: (batch, heads, queries, head_dim).
        key: (batch, heads, kv_length, head_dim).
        value: (batch, heads, kv_length, head_dim).
        mask: Broadcasts to (batch, heads, queries, kv_length): booleans, or numbers that are added.
        scale: Factor on the scores.

    Returns:
        (batch, heads, queries, head_dim), contiguous.
    """
    if not query.is_cuda:
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return attended.contiguous()
    from .query_kernel import attend_in_parts

    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    # Rows of a cache are contiguous already.
    query, key, value = (each if each.stride(3) == 1 else each.contiguous() for each in (query, key, value))
    attend_in_parts(query, key, value, mask, scale, out)
    return out


@attend_few_queries.register_fake
def _attend_few_queries_fake(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


# As a graph's node calls them.
MULTIPLY = getattr(torch.ops, NAMESPACE).multiply_one_row.default
ATTEND = getattr(torch.ops, NAMESPACE).attend_few_queries.default


def multiply_rows(graph: fx.GraphModule, device: str = "cuda") -> None:
    """Give products of one row to the kernel that reads matrices as fast as the memory, in place.

    Layers that take the same row (query, key and value; gate and up) are one launch.
    """
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    siblings: dict[tuple[fx.Node, bool], list[fx.Node]] = {}
    for node in order:
        if _is_product_of_one_row(node, device):
            siblings.setdefault((node.args[0], _bias(node) is not None), []).append(node)
    for (x, has_bias), nodes in siblings.items():
        for group in _launches(nodes, order):
            weights = [node.args[1] for node in group]
            with graph.graph.inserting_before(group[0]):
                products = call(graph, MULTIPLY, x, weights, [_bias(node) for node in group] if has_bias else [])
                for index, node in enumerate(group):
                    node.replace_all_uses_with(call(graph, operator.getitem, products, index))
            for node in group:
                graph.graph.erase_node(node)
    graph.recompile()


def _is_product_of_one_row(node: fx.Node, device: str) -> bool:
    if node.op != "call_function" or node.target is not LINEAR or node.kwargs:
        return False
    x, weight = (value_of(each) for each in node.args[:2])
    return (
        x is not None
        and weight is not None
        and x.device.type == device
        and x.dtype in HALF
        and x.dtype == weight.dtype
        and is_each(tuple(x.shape[:-1]), 1)
        and all(type(length) is int for length in weight.shape)
    )


def _bias(node: fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else None


def _launches(nodes: list[fx.Node], order: dict[fx.Node, int]) -> list[list[fx.Node]]:
    """Groups of products that can be computed where the first of them is: what they read is there by then."""
    groups: list[list[fx.Node]] = []
    for node in nodes:
        read = [each for each in (node.args[1], _bias(node)) if isinstance(each, fx.Node)]
        last = groups[-1] if groups else None
        if last is not None and len(last) < MAX_MATRICES and all(order[each] < order[last[0]] for each in read):
            last.append(node)
        else:
            groups.append([node])
    return groups


def attend_in_parts(graph: fx.GraphModule, device: str = "cuda") -> None:
    """Give attention of few query tokens with a mask to the kernels that share its keys among a GPU's processors, in place.

    That is one new token; where query heads share a key-value head, the packed heads of a group (`grouped_attention`).
    """
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not functional.scaled_dot_product_attention:
            continue
        found = _attention(node, device)
        if found is None:
            continue
        with graph.graph.inserting_before(node):
            attended = call(graph, ATTEND, *found)
        node.replace_all_uses_with(attended)
        graph.graph.erase_node(node)
    graph.recompile()


def _attention(node: fx.Node, device: str) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node, Any] | None:
    """Query, key, value, mask and scale of an attention that the kernels take; None if it is another."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    nodes = [given.get(name) for name in names[:4]]
    q, k, v, mask = map(value_of, nodes)
    if q is None or k is None or v is None or mask is None or given.get("dropout_p") or given.get("is_causal"):
        return None
    if q.device.type != device or q.dtype not in HALF or not q.ndim == k.ndim == v.ndim == mask.ndim == 4:
        return None
    heads, queries, head_dim = q.shape[1:]
    if any(type(length) is not int for length in (heads, queries, head_dim)):
        return None
    if queries > MAX_QUERIES or head_dim > MAX_HEAD_DIM:
        return None
    # A cache's sizes are dynamic, but for those that Dynamo found to be fixed on its way.
    fixed = ((k.shape[1], heads), (v.shape[1], heads), (k.shape[3], head_dim), (v.shape[3], head_dim))
    if not all(statically_known_true(length == wanted) for length, wanted in fixed):
        return None
    if mask.dtype != torch.bool and mask.dtype != q.dtype:
        return None
    # A number that a module holds is an input of the graph.
    scale = given.get("scale")
    return (*nodes, head_dim**-0.5 if scale is None else scale)
