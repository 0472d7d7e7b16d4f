# SPDX-License-Identifier: Apache-2.0
"""A mixture's experts, over which upstream loops on the host, as one operator of a graph: it runs there as it does in eager."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as nn_module
from torch.nn.modules.dropout import _DropoutNd

from .attention import AUTOGRAD, NAMESPACE
from .structure import StructureError, assembled, describe_structure, described_attributes, find, likeness

# Transformers' decorator whose forward runs the one of the class or another, and what that one reads but not the class's.
_CHOOSER = "use_experts_implementation"
_CHOICE = ("config",)
_LOOPING = (None, "eager")
# Modules that hold parameters or modules to choose among.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class ExpertLoop(nn.Module):
    """Mixin of generated subclasses of experts whose forward loops over the experts that tokens were sent to."""

    def loop_over_experts(
        self,
        name: str,
        *arguments: torch.Tensor | None,
        rank: int | None = None,
        is_even: bool = True,
        is_chosen: bool = False,
    ) -> torch.Tensor:
        """What upstream's forward returns for these arguments; in a graph, which is where it is called.

        Args:
            name: `module:Class` of the upstream class. What its forward returns depends on nothing but its arguments, its
                attributes and its tensors, and is a new tensor with the size, dtype and device of the first argument.
            *arguments: Hidden states first.
            rank: The number of dimensions for which that size is so; None for any.
            is_even: Every turn of the loop reads the same attributes. Where it doesn't, parameters that no turn read have no
                gradient in eager; a graph would give them one of zeros, by which an optimizer changes them.
            is_chosen: The class has Transformers' decorator for experts, and its own forward is the one that runs.

        Returns:
            What upstream's forward returns. Where the module or the call isn't one for an operator, the graph breaks, and it runs.
        """
        tensors = list(self.parameters())
        problem = _problem(self, arguments, rank=rank, is_even=is_even)
        given = [each for each in arguments if each is not None]
        values = [_guarded(self, each) for each in self.attributes_read().split()]
        structure, problem = self.expert_structure(name, problem, is_chosen, values).split("\n")
        if problem:
            torch._dynamo.graph_break(msg=problem)
            own: Any = super()
            theirs: torch.Tensor = own.forward(*arguments)
            return theirs
        device = given[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        looped: torch.Tensor = _loop(structure, [*given, *tensors], len(given), is_chosen, autocast)
        return looped

    @property
    def reads_on_host(self) -> bool:
        """Whether the loop runs: which experts are hit is read on the host, so no CUDA graph holds it."""
        return getattr(getattr(self, "config", None), "_experts_implementation", None) in _LOOPING

    @property
    def likeness(self) -> str:
        """What is alike in two modules that an operator of one graph can run, where layers share the graph."""
        return likeness(self, ignored=_CHOICE)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # untyped in PyTorch
    def attributes_read(self) -> str:
        """The paths of what a description of this module says of it and of the modules below it, a blank between them, and after
        a float its value. Dynamo calls it while it makes a graph."""
        return " ".join(
            f"{path}={value!r}" if isinstance(value, float) else path for path, value in described_attributes(self)
        )

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # untyped in PyTorch
    def expert_structure(self, name: str, problem: str, is_chosen: bool, values: list[Any]) -> str:
        """A line with this module without its parameters, and one with the reason where it can't be an operator. Dynamo calls it
        while it makes a graph, which is guarded by `values`.
        """
        if nn_module._has_any_global_hook():  # type: ignore[no-untyped-call]  # untyped in PyTorch
            problem = problem or "there are hooks on all modules"
        if is_chosen and not problem and not _has_choice(find(name).forward):
            problem = "its forward is another than Transformers'"
        structure = ""
        if not problem:
            try:
                structure = describe_structure(self, name, ignored=_CHOICE if is_chosen else ())
            except StructureError as error:
                problem = str(error)
        return f"{structure}\n{problem and f'{type(self).__name__} is no operator: {problem}'}"


def _guarded(module: nn.Module, attribute: str) -> Any:
    """An attribute's value, None of a function. Traced: a graph is guarded by what is read here.

    Args:
        module: The experts.
        attribute: An entry of `attributes_read`.
    """
    path, _, number = attribute.partition("=")
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    if number:
        # Where layers share a graph a float may be an input of it: comparing makes it a constant.
        return True if value == float(number) else False  # noqa: SIM210 (a comparison would leave it a symbol)
    return None if callable(value) else value


def _problem(module: nn.Module, arguments: tuple[torch.Tensor | None, ...], *, rank: int | None, is_even: bool) -> str:
    """Why experts can't be an operator in this call, empty where they can. Traced: what is asked here, a graph is guarded by."""
    hidden, parts = arguments[0], list(module.modules())
    if hidden is None or any(each is None for each in arguments) or (rank is not None and hidden.ndim != rank):
        return "it is called in a way that isn't known"
    if any(_is_hooked(part) for part in parts if part is not module):
        return "there are hooks on modules inside of it"
    # Dynamo guards that an instance has none of its own where the attribute is read.
    if any("forward" in part.__dict__ or not callable(part.forward) for part in parts):
        return "a module inside of it has a forward of its own"
    if any(part.training != module.training for part in parts):
        return "some modules inside of it are in training and others aren't"
    if torch.is_grad_enabled() and (not is_even or any(isinstance(part, _CONTAINERS) for part in parts)):
        tensors = (*arguments, *module.parameters())
        if any(each is not None and each.requires_grad for each in tensors):
            return "parameters of experts that no token is sent to have no gradient"
    if any(isinstance(part, _DropoutNd) and part.training and part.p > 0 for part in parts):
        return "it draws random numbers"
    return ""


def _is_hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)


def _has_choice(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_qualname.startswith(f"{_CHOOSER}.") and hasattr(function, "__wrapped__")


def _call(
    structure: str, tensors: Sequence[torch.Tensor], count: int, is_chosen: bool, autocast: torch.dtype | None
) -> torch.Tensor:
    """Upstream's forward of the described module: the first `count` tensors are its arguments, the others its own."""
    hidden = tensors[0]
    with (
        assembled(structure, tensors[count:]) as module,
        torch.autocast(hidden.device.type, dtype=autocast, enabled=autocast is not None),
    ):
        forward: Any = type(module).forward
        result: torch.Tensor = (forward.__wrapped__ if is_chosen else forward)(module, *tensors[:count])
        return result


# The host reads which experts are hit: no CUDA graph can hold that.
@torch.library.custom_op(f"{NAMESPACE}::loop_over_experts", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _loop(
    structure: str, tensors: list[torch.Tensor], count: int, is_chosen: bool, autocast: torch.dtype | None
) -> torch.Tensor:
    hidden, out = tensors[0], _call(structure, tensors, count, is_chosen, autocast).contiguous()
    if out.shape != hidden.shape or out.dtype != hidden.dtype or out.device != hidden.device:
        raise RuntimeError("experts return another kind of tensor than a graph was told")
    return out


@_loop.register_fake
def _loop_fake(
    structure: str, tensors: list[torch.Tensor], count: int, is_chosen: bool, autocast: torch.dtype | None
) -> torch.Tensor:
    return tensors[0].new_empty(tensors[0].shape)


@torch.library.custom_op(
    f"{NAMESPACE}::loop_over_experts_backward", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _loop_backward(
    grad: torch.Tensor,
    structure: str,
    tensors: list[torch.Tensor],
    count: int,
    is_chosen: bool,
    autocast: torch.dtype | None,
    needed: list[int],
) -> list[torch.Tensor]:
    """The gradients of the tensors in `needed`, by their places."""
    # The forward again, as in `attention`, with autograd's keys back in dispatch.
    exclude = torch._C._dispatch_tls_local_exclude_set() - AUTOGRAD
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude), torch.enable_grad():
        given = [each.detach().requires_grad_(place in needed) for place, each in enumerate(tensors)]
        out = _call(structure, given, count, is_chosen, autocast)
        # Without a turn of the loop nothing has a gradient.
        wanted = [given[place] for place in needed]
        grads = torch.autograd.grad(out, wanted, grad, allow_unused=True, materialize_grads=True)
    return [each.contiguous() for each in grads]


@_loop_backward.register_fake
def _loop_backward_fake(
    grad: torch.Tensor,
    structure: str,
    tensors: list[torch.Tensor],
    count: int,
    is_chosen: bool,
    autocast: torch.dtype | None,
    needed: list[int],
) -> list[torch.Tensor]:
    return [tensors[place].new_empty(tensors[place].shape) for place in needed]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.structure, tensors, ctx.count, ctx.is_chosen, ctx.autocast = inputs
    ctx.needed = [place for place, each in enumerate(tensors) if each.requires_grad]
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    tensors: list[Any] = list(ctx.saved_tensors)
    grads: list[torch.Tensor | None] = [None] * len(tensors)
    found = _loop_backward(grad, ctx.structure, tensors, ctx.count, ctx.is_chosen, ctx.autocast, ctx.needed)
    for place, each in zip(ctx.needed, found, strict=True):
        grads[place] = each
    return None, grads, None, None, None


_loop.register_autograd(_backward, setup_context=_setup_context)
