# SPDX-License-Identifier: Apache-2.0
"""Attention over packed segments as one operator: what replaces upstream's split by `lengths.tolist()`."""

from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

varlen_attn: Callable[..., Any] | None = None
if torch.version.cuda is not None:
    # Otherwise its import takes a tenth of a second for nothing.
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

# Arguments of upstream's sdpa_attention_forward that change what it computes. It ignores others.
_CHANGES_RESULT = ("softcap", "position_bias", "cache", "attention_mask", "is_causal")

AUTOGRAD = reduce(
    or_,
    (
        torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
        for name in ("ADInplaceOrView", "AutogradCPU", "AutogradCUDA", "AutogradMPS", "AutogradXPU", "AutogradOther")
    ),
)

# Segments of at most this many tokens are attended to by a kernel of ours; one segment of at least so many by PyTorch's
# dense attention. Dense kernels are set up for each size anew, which pays where attention takes long.
_SHORT = 128
_LONG = 2048

# Named after the package, so that a standalone copy of the runtime registers operators of its own.
NAMESPACE = (__package__ or "vgen.runtime").replace(".", "_")


def packed_attention(
    attention_interface: Callable[..., Any],
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    scaling: float | None,
    dropout: float = 0.0,
    max_seqlen: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Non-causal attention within each segment of a packed sequence.

    What upstream's vision attentions compute by splitting query, key and value into segments, calling the attention
    interface on each, and concatenating the outputs (`Qwen2_5_VLVisionAttention.forward`, for one). For Transformers'
    sdpa interface it is a single operator: on the CPU bit-equal to that loop, on CUDA in half precision PyTorch's
    variable-length flash attention. For any other interface, and with dropout or with arguments that change the
    result, it is upstream's loop, which a full graph can't hold: a region then runs uncompiled.

    Args:
        attention_interface: An entry of Transformers' `ALL_ATTENTION_FUNCTIONS`.
        module: The attention module, as the interface expects it.
        query: (1, heads, seq_len, head_dim), floating.
        key: (1, key_value_heads, seq_len, head_dim), of the same dtype.
        value: (1, key_value_heads, seq_len, value_head_dim), of the same dtype.
        cu_seqlens: (segments + 1,), int32 or int64: where each segment starts, and the end of the last.
        scaling: Factor on the scores; None is 1/sqrt(head_dim).
        dropout: Probability of dropping an attention weight.
        max_seqlen: An upper bound of the segment lengths, if one is known: it saves the flash kernel empty work.
        **kwargs: Passed to the interface.

    Returns:
        (1, seq_len, heads, value_head_dim), contiguous, of the dtype of `query`.
    """
    if (
        attention_interface is not sdpa_attention_forward
        or dropout > 0.0
        or any(kwargs.get(name) is not None for name in _CHANGES_RESULT)
    ):
        return _upstream_loop(
            attention_interface, module, query, key, value, cu_seqlens, scaling=scaling, dropout=dropout, **kwargs
        )
    grouped = query.shape[1] != key.shape[1]
    if not grouped and _has_varlen(query, key, value):
        assert varlen_attn is not None
        # Any upper bound of the segment lengths will do, and the total needs no synchronisation with the GPU.
        bound = query.shape[2] if max_seqlen is None else max_seqlen
        q, k, v = (each.squeeze(0).transpose(0, 1) for each in (query, key, value))
        # Upstream's helpers make int32: no copy then.
        cu = cu_seqlens.to(torch.int32)
        out: torch.Tensor
        if torch.is_grad_enabled():
            out = varlen_attn(q, k, v, cu, cu, bound, bound, scale=scaling)
        else:
            out = _packed_flash(q, k, v, cu, bound, scaling)
        return out.unsqueeze(0)
    packed: torch.Tensor = _packed_sdpa(query, key, value, cu_seqlens, scaling, grouped)
    return packed


def _has_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the flash kernel behind `varlen_attn` takes these: CUDA, half precision, its head sizes."""
    head_dim = query.shape[-1]
    return (
        varlen_attn is not None
        and query.is_cuda
        and torch.version.hip is None
        and query.dtype in (torch.float16, torch.bfloat16)
        and head_dim % 8 == 0
        and head_dim <= 256
        and value.shape[-1] == head_dim
        and _is_ampere(query.device.index or 0)
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_ampere(index: int) -> bool:
    return torch.cuda.get_device_capability(index) >= (8, 0)


def _upstream_loop(
    attention_interface: Callable[..., Any],
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    **kwargs: Any,
) -> torch.Tensor:
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
    splits = [torch.split(each, lengths, dim=2) for each in (query, key, value)]
    kwargs = {"attention_mask": None, "is_causal": False} | kwargs
    return torch.cat([attention_interface(module, q, k, v, **kwargs)[0] for q, k, v in zip(*splits, strict=True)], 1)


def _segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    scaling: float | None,
    grouped: bool,
) -> torch.Tensor:
    """What `_upstream_loop` computes with sdpa_attention_forward, without what autograd can't pass through."""
    outputs = []
    splits = [torch.split(each, lengths, dim=2) for each in (query, key, value)]
    for q, k, v in zip(*splits, strict=True):
        out = scaled_dot_product_attention(q, k, v, scale=scaling, enable_gqa=grouped)
        outputs.append(out.transpose(1, 2).contiguous())
    return torch.cat(outputs, dim=1)


@torch.library.custom_op(f"{NAMESPACE}::packed_flash", mutates_args=())
def _packed_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scaling: float | None,
) -> torch.Tensor:
    """The fastest kernel for what the host knows of the segments: (seq_len, heads, head_dim) in and out, no gradients."""
    if max_seqlen <= _SHORT:
        from .segment_kernel import attend_segments

        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attend_segments(query, key, value, cu_seqlens, max_seqlen, scale, out)
        return out
    if cu_seqlens.shape[0] == 2 and query.shape[0] >= _LONG:
        # One segment is dense attention, for which cuDNN has a kernel of this GPU's own.
        q, k, v = (each.transpose(0, 1).unsqueeze(0) for each in (query, key, value))
        dense = scaled_dot_product_attention(q, k, v, scale=scaling)
        # cuDNN writes the layout of the query, so this copies nothing there.
        return dense.squeeze(0).transpose(0, 1).contiguous()
    assert varlen_attn is not None
    packed: torch.Tensor = varlen_attn(
        query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scaling
    )
    return packed


@_packed_flash.register_fake
def _packed_flash_fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scaling: float | None,
) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op(f"{NAMESPACE}::packed_sdpa", mutates_args=())
def _packed_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scaling: float | None,
    grouped: bool,
) -> torch.Tensor:
    return _segments(query, key, value, cu_seqlens.diff().tolist(), scaling, grouped)


@_packed_sdpa.register_fake
def _packed_sdpa_fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scaling: float | None,
    grouped: bool,
) -> torch.Tensor:
    batch, heads, seq_len, _ = query.shape
    return query.new_empty(batch, seq_len, heads, value.shape[-1])


@torch.library.custom_op(f"{NAMESPACE}::packed_sdpa_backward", mutates_args=())
def _packed_sdpa_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scaling: float | None,
    grouped: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = cu_seqlens.diff().tolist()
    # The forward again, so that the backward is that of the kernel it picks, to the bit. Inside an operator autograd's
    # keys are excluded from dispatch; torch.func, which would get around that, can't run inside a TorchDispatchMode.
    exclude = torch._C._dispatch_tls_local_exclude_set() - AUTOGRAD
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude), torch.enable_grad():
        q, k, v = (each.detach().requires_grad_() for each in (query, key, value))
        grads = torch.autograd.grad(_segments(q, k, v, lengths, scaling, grouped), (q, k, v), grad)
    # Contiguous, as the fake implementation says.
    d_query, d_key, d_value = (each.contiguous() for each in grads)
    return d_query, d_key, d_value


@_packed_sdpa_backward.register_fake
def _packed_sdpa_backward_fake(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scaling: float | None,
    grouped: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    query, key, value, cu_seqlens, ctx.scaling, ctx.grouped = inputs
    ctx.save_for_backward(query, key, value, cu_seqlens)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    d_query, d_key, d_value = _packed_sdpa_backward(grad, *ctx.saved_tensors, ctx.scaling, ctx.grouped)
    return d_query, d_key, d_value, None, None, None


_packed_sdpa.register_autograd(_backward, setup_context=_setup_context)
