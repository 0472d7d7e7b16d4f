# SPDX-License-Identifier: Apache-2.0
"""Packed attention against upstream's loop over segments, to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward

from vgen.runtime import packed_attention
from vgen.runtime.attention import _packed_sdpa, _packed_sdpa_backward

CU = torch.tensor([0, 9, 10, 26, 40], dtype=torch.int32)


class Module(torch.nn.Module):
    is_causal = False

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def inputs(dtype: torch.dtype, heads: int, key_heads: int, dim: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, 40, each, dim, dtype=dtype, generator=generator).transpose(1, 2).requires_grad_()
        for each in (heads, key_heads, key_heads)
    ]


def upstream(interface: Callable[..., Any], module: Module, *qkv: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Qwen2_5_VLVisionAttention.forward, where it isn't flash attention."""
    lengths = CU[1:] - CU[:-1]
    splits = [torch.split(each, lengths.tolist(), dim=2) for each in qkv]
    outputs = [
        interface(module, q, k, v, attention_mask=None, is_causal=False, **kwargs)[0]
        for q, k, v in zip(*splits, strict=True)
    ]
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(2, 2, 16), (4, 4, 80), (3, 3, 17), (4, 2, 32)])
@pytest.mark.parametrize("interface", [sdpa_attention_forward, eager_attention_forward])
def test_equals_the_loop(
    interface: Callable[..., Any], dtype: torch.dtype, heads: int, key_heads: int, dim: int
) -> None:
    qkv, module = inputs(dtype, heads, key_heads, dim), Module(heads // key_heads)
    ours = packed_attention(interface, module, *qkv, CU, scaling=dim**-0.5)
    theirs = upstream(interface, module, *qkv, scaling=dim**-0.5)
    assert ours.shape == (1, 40, heads, dim)
    assert torch.equal(ours, theirs)
    grad = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, qkv, grad), torch.autograd.grad(theirs, qkv, grad), strict=True):
        assert torch.equal(a, b)


def test_operators_are_correct() -> None:
    q, k, v = inputs(torch.float32, 4, 2, 16)
    torch.library.opcheck(_packed_sdpa, (q, k, v, CU, 0.25, True))
    torch.library.opcheck(
        _packed_sdpa_backward,
        (torch.ones(1, 40, 4, 16), q.detach(), k.detach(), v.detach(), CU, 0.25, True),
    )


def test_backward_in_a_dispatch_mode() -> None:
    qkv = inputs(torch.float32, 2, 2, 16)
    out = packed_attention(sdpa_attention_forward, Module(1), *qkv, CU, scaling=0.25)
    grads = torch.autograd.grad(out, qkv, torch.ones_like(out), retain_graph=True)
    with FlopCounterMode(display=False):
        again = torch.autograd.grad(out, qkv, torch.ones_like(out))
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


def test_one_graph_for_all_segments() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, dynamic=True, backend=backend)
    def attend(q: torch.Tensor, cu: torch.Tensor) -> torch.Tensor:
        return packed_attention(sdpa_attention_forward, Module(1), q, q, q, cu, scaling=0.5)

    for ends in ([0, 4, 9], [0, 3, 5, 12], [0, 2, 6, 7, 8, 30]):
        q = torch.randn(1, 2, ends[-1], 8)
        expected = packed_attention(sdpa_attention_forward, Module(1), q, q, q, torch.tensor(ends), scaling=0.5)
        assert torch.equal(attend(q, torch.tensor(ends)), expected)
    assert len(graphs) == 1


@pytest.mark.parametrize("kwargs", [{"dropout": 0.5}, {"position_bias": torch.zeros(1)}])
def test_what_the_operator_cannot_do_is_not_captured(kwargs: dict[str, Any]) -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def attend(q: torch.Tensor) -> torch.Tensor:
        return packed_attention(sdpa_attention_forward, Module(1), q, q, q, CU, scaling=0.5, **kwargs)

    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        attend(torch.randn(1, 2, 40, 8))


def test_softcap_is_upstreams_error() -> None:
    q = torch.randn(1, 2, 40, 8)
    with pytest.raises(ValueError, match="softcap"):
        packed_attention(sdpa_attention_forward, Module(1), q, q, q, CU, scaling=0.5, softcap=1.0)
