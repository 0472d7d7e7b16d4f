# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention that takes inside a graph the branches that it takes in eager."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.integrations import sdpa_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .attention import NAMESPACE

# What upstream's function is told the attention module is, where the query heads are packed already: it has no groups.
_UNGROUPED: Any = SimpleNamespace(is_causal=False)

# Arguments of upstream's function that an operator can't take, or that say where keys and values come from.
_NOT_TAKEN = ("cache", "softcap")


def grouped_attention(attention_interface: Callable[..., Any]) -> Callable[..., Any]:
    """The attention function that computes inside a graph what `attention_interface` computes in eager.

    Upstream's `sdpa_attention_forward` (transformers/integrations/sdpa_attention.py) packs the query heads of one new token
    that share a key-value head; inside a graph it repeats keys and values for every query head instead, which differs in the
    last bits and moves as many times the memory. For that function it is the same with the packing done in the graph too;
    every other one it is itself.

    Args:
        attention_interface: An entry of Transformers' `ALL_ATTENTION_FUNCTIONS`.
    """
    return _grouped_sdpa if attention_interface is sdpa_attention_forward else attention_interface


def _grouped_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What `sdpa_attention_forward` computes in eager.

    Args:
        query: (batch, heads, query_length, head_dim).
        key: (batch, key_value_heads, kv_length, head_dim).
        value: (batch, key_value_heads, kv_length, value_head_dim).
        attention_mask: (batch, 1 or heads, query_length, kv_length), or None.
        position_bias: (batch, heads, query_length, kv_length), added to the scores, or None.
        **kwargs: As for `sdpa_attention_forward`.

    Returns:
        (batch, query_length, heads, value_head_dim), and no weights.
    """
    if is_causal is not None:
        # Of a comparison of sizes, in a graph it is a symbol, which SDPA doesn't take.
        is_causal = True if is_causal else False  # noqa: SIM210 (a call of bool would leave it a symbol)
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1 and attention_mask is not None and not any(kwargs.get(name) is not None for name in _NOT_TAKEN):
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        if query.device.type == "cpu" and not _needs_grad(query, key, value, position_bias):
            window = kwargs.get("sliding_window")
            out: torch.Tensor = _sdpa_as_eager(
                query, key, value, attention_mask, groups, dropout, scaling, causal, window, position_bias
            )
            return out, None
        if query.shape[2] == 1 and not sdpa_attention.use_gqa_in_sdpa(attention_mask, key, value):
            pack = sdpa_attention.pack_gqa
            # One token sees all that it is given: causality is no question for it.
            packed, _ = sdpa_attention_forward(
                _UNGROUPED,
                pack(query, groups),
                key,
                value,
                pack(attention_mask, groups),
                dropout,
                scaling,
                False,
                **_if_given(position_bias=position_bias if position_bias is None else pack(position_bias, groups)),
            )
            # (batch, groups, key_value_heads, value_head_dim): the tokens of the packed query are a group's heads.
            return packed.transpose(1, 2).reshape(packed.shape[0], 1, -1, packed.shape[-1]), None
    attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout,
        scaling,
        is_causal,
        **_if_given(position_bias=position_bias),
        **kwargs,
    )
    return attended


def _if_given(**arguments: torch.Tensor | None) -> dict[str, Any]:
    """Without those that are None: earlier releases of Transformers don't know them."""
    return {name: value for name, value in arguments.items() if value is not None}


def _needs_grad(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


@torch.library.custom_op(f"{NAMESPACE}::sdpa_as_eager", mutates_args=())
def _sdpa_as_eager(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    groups: int,
    dropout: float,
    scaling: float | None,
    causal: bool,
    window: int | None,
    position_bias: torch.Tensor | None,
) -> torch.Tensor:
    # A graph always has a mask; in eager there is none where it would say nothing, and another kernel runs then. On the CPU
    # a look at the mask costs next to nothing; elsewhere it would wait for the device.
    lengths = (query.shape[2], key.shape[2])
    mask = None if _says_nothing(attention_mask, lengths, causal, window) else attention_mask
    module: Any = SimpleNamespace(num_key_value_groups=groups)
    bias = _if_given(position_bias=position_bias)
    attended, _ = sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, causal, **bias)
    out: torch.Tensor = attended
    return out


def _says_nothing(mask: torch.Tensor, lengths: tuple[int, int], causal: bool, window: int | None) -> bool:
    """Whether a mask, (batch, heads, query_length, kv_length), is what attention does without one.

    One that is given with a size of 1 for many tokens is never left out in eager. From a sliding window's length on there is
    one in eager too, whatever it says (`_ignore_causal_mask_sdpa` in transformers/masking_utils.py).

    Args:
        mask: What attention was given.
        lengths: `query_length` and `kv_length`.
        causal: Whether attention without a mask is causal.
        window: The sliding window, in tokens.
    """
    query_length, kv_length = lengths
    if mask.dtype != torch.bool or mask.shape[-2:] != lengths or (window is not None and kv_length >= window):
        return False
    if not causal or query_length == 1:
        return bool(mask.all())
    return torch.equal(mask, mask.new_ones(query_length, kv_length).tril().expand_as(mask))


@_sdpa_as_eager.register_fake
def _sdpa_as_eager_fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    groups: int,
    dropout: float,
    scaling: float | None,
    causal: bool,
    window: int | None,
    position_bias: torch.Tensor | None,
) -> torch.Tensor:
    batch, heads, query_length, _ = query.shape
    return query.new_empty(batch, query_length, heads, value.shape[-1])
