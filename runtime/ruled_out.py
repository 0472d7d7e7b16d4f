# SPDX-License-Identifier: Apache-2.0
"""What in a model or around it rules compiled forwards out."""

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from .rope import rope_reason
from .variants import own_variants


def ruled_out(module: Any, *, is_packed: bool, is_rotary: bool) -> str | None:
    """Why a module's forward can't run compiled here and now, whatever its arguments; None where it can.

    Args:
        module: A region's module.
        is_packed: Its core calls `packed_attention`.
        is_rotary: It has rotary embeddings.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return "it runs inside a torch.jit trace"
    if torch._C._len_torch_dispatch_stack():
        return "it runs inside a TorchDispatchMode"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "it runs inside a torch.func transform"
    if forward_ad._current_level >= 0:
        return "it runs inside forward-mode differentiation"
    if torch._C._len_torch_function_stack() and _has_function_mode():
        return "it runs inside a TorchFunctionMode"
    if is_packed:
        implementation = getattr(config_of(module), "_attn_implementation", None) or "eager"
        if implementation != "sdpa" and "flash" not in implementation:
            return f'attention implementation "{implementation}" attends segment by segment'
    if is_rotary:
        own = own_variants(module)
        if not own.is_rope_known:
            # Once: the rotary embeddings took their type from the config when they were constructed.
            own.rope = rope_reason(module.config)
            own.is_rope_known = True
        return own.rope
    return None


def _has_function_mode() -> bool:
    """Whether there is a mode other than that of `torch.device` and `torch.set_default_device`, which Dynamo traces."""
    places = range(torch._C._len_torch_function_stack())
    return not all(isinstance(torch._C._get_function_stack_at(place), DeviceContext) for place in places)


def looks_both_ways(module: Any) -> bool:
    """Whether its config has attention look both ways."""
    return bool(getattr(config_of(module), "use_bidirectional_attention", False))


def config_of(module: Any) -> Any:
    """The config of a region's module: a layer has none of its own, but its attention has."""
    config = getattr(module, "config", None)
    if config is not None:
        return config
    return next((each.config for each in module.modules() if getattr(each, "config", None) is not None), None)
