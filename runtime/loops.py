# SPDX-License-Identifier: Apache-2.0
"""A function that loops over values on the host, as one operator of a graph: it runs there as it does in eager."""

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from .attention import AUTOGRAD, NAMESPACE


def loop_over_values(name: str, *arguments: Any, size: tuple[int | None, ...]) -> torch.Tensor:
    """What a function returns for these arguments; inside a graph by an operator, and its gradients by another.

    Args:
        name: `module:function` or `module:Class.function`. What the function returns depends on nothing but its arguments,
            and is a new tensor with the dtype and device of the first tensor among them.
        *arguments: Tensors, ints and None. With others the function itself is called.
        size: The size of what it returns, None where values decide about a dimension.
    """
    kinds = "".join(map(_kind, arguments))
    if not torch.compiler.is_compiling() or "?" in kinds:
        return _function(name)(*arguments)
    tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
    numbers = [each for each, kind in zip(arguments, kinds, strict=True) if kind == "i"]
    known = [-1 if each is None else each for each in size]
    looped: torch.Tensor = _loop(name, kinds, tensors, [*known, *numbers], len(size))
    return looped


def _kind(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return "t"
    if argument is None:
        return "n"
    return "i" if isinstance(argument, int) and not isinstance(argument, bool) else "?"


@lru_cache
def _function(name: str) -> Callable[..., torch.Tensor]:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _call(name: str, kinds: str, tensors: Sequence[torch.Tensor], numbers: Sequence[int]) -> torch.Tensor:
    given = {"t": iter(tensors), "i": iter(numbers)}
    return _function(name)(*(next(given[kind]) if kind in given else None for kind in kinds))


@torch.library.custom_op(f"{NAMESPACE}::loop_over_values", mutates_args=())
def _loop(name: str, kinds: str, tensors: list[torch.Tensor], numbers: list[int], rank: int) -> torch.Tensor:
    """`numbers` are the `rank` sizes of the result, then the ints among the arguments: autograd takes no empty list."""
    out = _call(name, kinds, tensors, numbers[rank:]).contiguous()
    if out.ndim != rank or out.dtype != tensors[0].dtype or out.device != tensors[0].device:
        raise RuntimeError(f"{name} returns another kind of tensor than a graph was told")
    return out


@_loop.register_fake
def _loop_fake(name: str, kinds: str, tensors: list[torch.Tensor], numbers: list[int], rank: int) -> torch.Tensor:
    # A size is of the graph's own symbols, or -1 for one that isn't known before it runs.
    return tensors[0].new_empty(
        [
            torch.library.get_ctx().new_dynamic_size() if type(each) is int and each < 0 else each
            for each in numbers[:rank]
        ]
    )


@torch.library.custom_op(f"{NAMESPACE}::loop_over_values_backward", mutates_args=())
def _loop_backward(
    grad: torch.Tensor, name: str, kinds: str, tensors: list[torch.Tensor], numbers: list[int], rank: int
) -> list[torch.Tensor]:
    # The forward again, as in `attention`, with autograd's keys back in dispatch.
    exclude = torch._C._dispatch_tls_local_exclude_set() - AUTOGRAD
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude), torch.enable_grad():
        given = [each.detach().requires_grad_() if each.is_floating_point() else each for each in tensors]
        floating = [each for each in given if each.is_floating_point()]
        grads = torch.autograd.grad(
            _call(name, kinds, given, numbers[rank:]), floating, grad, allow_unused=True, materialize_grads=True
        )
    return [each.contiguous() for each in grads]


@_loop_backward.register_fake
def _loop_backward_fake(
    grad: torch.Tensor, name: str, kinds: str, tensors: list[torch.Tensor], numbers: list[int], rank: int
) -> list[torch.Tensor]:
    return [each.new_empty(each.shape) for each in tensors if each.is_floating_point()]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.name, ctx.kinds, tensors, ctx.numbers, ctx.rank = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    tensors = list(ctx.saved_tensors)
    found = iter(_loop_backward(grad, ctx.name, ctx.kinds, tensors, ctx.numbers, ctx.rank))
    return None, None, [next(found) if each.is_floating_point() else None for each in tensors], None, None


_loop.register_autograd(_backward, setup_context=_setup_context)
