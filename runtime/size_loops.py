# SPDX-License-Identifier: Apache-2.0
"""A function that loops over a size, or computes otherwise in a graph, as one operator of the graph: it runs there as it does in
eager, for every size."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch._dynamo.comptime import comptime
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .attention import AUTOGRAD, NAMESPACE
from .probing import Output, ProbeError, as_in_eager, flat, function_of, probe, put_together

_logger = logging.getLogger(__name__)


def loop_over_sizes(name: str, function: Callable[..., Any], differs: bool, /, *arguments: Any, **named: Any) -> Any:
    """What a function returns for these arguments; inside a graph by an operator, and its gradients by another.

    Args:
        name: `module:function` or `module:Class.method` of what runs. A method doesn't read its object. What it returns depends
            on nothing but its arguments, and it changes nothing.
        function: What upstream would call. Where it is another one, put in the place of what `name` names, or where that can't be
            an operator or loops over no size that may change in this graph, it is traced.
        differs: Whether it computes otherwise in a graph than in eager: then a graph has the operator for all sizes.
        *arguments: Tensors, numbers, texts, dtypes and None, and tuples and lists of these.
        **named: Likewise.
    """
    if not torch.compiler.is_dynamo_compiling():
        return function(*arguments, **named)
    tensors: list[Any] = []
    constants: list[Any] = []
    structure = flat((tuple(arguments), list(named.values())), tensors, constants)
    if "?" in structure or not tensors:
        return function(*arguments, **named)
    names = " ".join(named)  # noqa: F841  # read by `_plan`
    device = tensors[0].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    comptime(_plan)
    # The constants are what the graph is guarded by.
    plan, returned = _planned(constants).split("\n")
    if not plan:
        return function(*arguments, **named)
    return put_together(returned, _run(plan, tensors, autocast), [])


# What was planned last, by `_plan`: Dynamo calls it where it traces the call of `comptime`, and takes no result from there.
_last: list[str] = []


def _plan(context: Any) -> None:
    """Note a description of the operator for a call of `loop_over_sizes` that is being traced; an empty one where there's none.

    Args:
        context: Dynamo's, of that call.
    """
    _last[:] = ["\n"]
    locals_ = {
        name: context.get_local(name)._i_will_not_complain_if_bc_breaks_VariableTracker()
        for name in ("name", "function", "structure", "tensors", "constants", "names", "differs", "autocast")
    }
    if not all(each.is_python_constant() for each in locals_["constants"].items):
        return
    # The operator looks its function up by name. Dynamo guards the graph by which one it is given here.
    if getattr(locals_["function"].realize(), "fn", None) is not function_of(locals_["name"].as_python_constant()):
        return
    tensors = [each.as_proxy().node.meta["example_value"] for each in locals_["tensors"].items]
    # Parts of a tensor that lies on several devices, or quantised ones, would be lost.
    if not all(isinstance(each, FakeTensor) for each in tensors):
        return
    call, structure, constants, names, differs, autocast = (
        locals_[name].as_python_constant()
        for name in ("name", "structure", "constants", "names", "differs", "autocast")
    )
    if not differs and not any(isinstance(size, torch.SymInt) for each in tensors for size in each.shape):
        return
    plan = {"name": call, "structure": structure, "constants": [_written(each) for each in constants], "names": names}
    key = (json.dumps(plan), differs, str(autocast), torch.is_grad_enabled(), *map(_likeness, tensors))
    envs = (size.node.shape_env for each in tensors for size in each.shape if isinstance(size, torch.SymInt))
    env = next(envs, _NO_ENV)
    known = _known.setdefault(env, {})
    if key not in known:
        known[key] = _description(plan, tensors, env, differs=differs, autocast=autocast)
    _last[:] = [known[key]]


# By the graph that is being made, whose guards a description may rely on, and all that is known of a call: layers call alike.
_known: WeakKeyDictionary[ShapeEnv, dict[tuple[Any, ...], str]] = WeakKeyDictionary()
_NO_ENV = ShapeEnv()


def _likeness(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device} {tensor.requires_grad}"


def _description(
    plan: dict[str, Any],
    tensors: Sequence[torch.Tensor],
    env: ShapeEnv,
    *,
    differs: bool,
    autocast: torch.dtype | None,
) -> str:
    """A line that describes an operator, and one that says how its results are put together; empty where there's none."""
    try:
        found = probe(partial(_call, plan, autocast=autocast), tensors)
    except ProbeError as error:
        _logger.info("%s is no operator: %s", plan["name"], error)
        return "\n"
    if not differs and not found.loops:
        return "\n"
    found.guard(env)
    outputs = [asdict(each) for each in found.outputs]
    return f"{json.dumps({**plan, 'outputs': outputs}, separators=(',', ':'))}\n{found.structure}"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # untyped in PyTorch
def _planned(constants: list[Any]) -> str:
    return _last[0]


def _written(constant: Any) -> Any:
    return {"dtype": str(constant).removeprefix("torch.")} if isinstance(constant, torch.dtype) else constant


def _read(constant: Any) -> Any:
    return getattr(torch, constant["dtype"]) if isinstance(constant, dict) else constant


def _call(plan: dict[str, Any], tensors: Sequence[torch.Tensor], *, autocast: torch.dtype | None) -> Any:
    """The described function on these tensors."""
    function = function_of(plan["name"])
    arguments, named = put_together(plan["structure"], tensors, [_read(each) for each in plan["constants"]])
    # A method is given no object: it doesn't read one.
    owner = (None,) if "." in plan["name"].partition(":")[2] else ()
    with as_in_eager(), torch.autocast(tensors[0].device.type, dtype=autocast, enabled=autocast is not None):
        return function(*owner, *arguments, **dict(zip(plan["names"].split(), named, strict=True)))


def _outputs(plan: dict[str, Any]) -> list[Output]:
    return [Output(**each) for each in plan["outputs"]]


def _results(
    plan: dict[str, Any], tensors: Sequence[torch.Tensor], autocast: torch.dtype | None
) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    flat(_call(plan, tensors, autocast=autocast), found, [])
    return found


def _laid_out(tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """A tensor whose dimensions lie in memory in that order."""
    return tensor.permute(order).contiguous().permute(_inverse(order))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


@torch.library.custom_op(f"{NAMESPACE}::loop_over_sizes", mutates_args=())
def _run(plan: str, tensors: list[torch.Tensor], autocast: torch.dtype | None) -> list[torch.Tensor]:
    described = json.loads(plan)
    found, outputs = _results(described, tensors, autocast), _outputs(described)
    expected = [(_size(output, tensors), getattr(torch, output.dtype), tensors[0].device) for output in outputs]
    if [(list(each.shape), each.dtype, each.device) for each in found] != expected:
        raise RuntimeError(f"{described['name']} returns other tensors than a graph was told")
    return [_laid_out(each, output.order) for each, output in zip(found, outputs, strict=True)]


@_run.register_fake
def _run_fake(plan: str, tensors: list[torch.Tensor], autocast: torch.dtype | None) -> list[torch.Tensor]:
    made = []
    for output in _outputs(json.loads(plan)):
        size = _size(output, tensors)
        empty = tensors[0].new_empty([size[dim] for dim in output.order], dtype=getattr(torch, output.dtype))
        made.append(empty.permute(_inverse(output.order)))
    return made


def _size(output: Output, tensors: Sequence[torch.Tensor]) -> list[int]:
    return [each if isinstance(each, int) else tensors[each[0]].shape[each[1]] for each in output.size]


@torch.library.custom_op(f"{NAMESPACE}::loop_over_sizes_backward", mutates_args=())
def _run_backward(
    plan: str,
    grads: list[torch.Tensor],
    tensors: list[torch.Tensor],
    autocast: torch.dtype | None,
    given: list[int],
    needed: list[int],
    is_known: bool,
) -> list[torch.Tensor]:
    """The gradients of the tensors in `needed`, by their places, from those of the outputs in `given`.

    `is_known` is whether a graph goes by how they lie in memory.
    """
    described = json.loads(plan)
    # The forward again, as in `attention`, with autograd's keys back in dispatch.
    exclude = torch._C._dispatch_tls_local_exclude_set() - AUTOGRAD
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude), torch.enable_grad():
        again = [each.detach().requires_grad_(place in needed) for place, each in enumerate(tensors)]
        found = _results(described, again, autocast)
        wanted = torch.autograd.grad([found[place] for place in given], [again[place] for place in needed], grads)
    return [each.contiguous() if is_known else each for each in wanted]


@_run_backward.register_fake
def _run_backward_fake(
    plan: str,
    grads: list[torch.Tensor],
    tensors: list[torch.Tensor],
    autocast: torch.dtype | None,
    given: list[int],
    needed: list[int],
    is_known: bool,
) -> list[torch.Tensor]:
    return [tensors[place].new_empty(tensors[place].shape) for place in needed]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    ctx.plan, tensors, ctx.autocast = inputs
    # What has no part in a loss gets no gradient, as in eager: not one of zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grads: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    tensors: list[Any] = list(ctx.saved_tensors)
    outputs = _outputs(json.loads(ctx.plan))
    given = [place for place, grad in enumerate(grads) if grad is not None and outputs[place].uses]
    needed = sorted({use for place in given for use in outputs[place].uses if ctx.needs_input_grad[1][use]})
    found: list[torch.Tensor | None] = [None] * len(tensors)
    if needed:
        # Uncompiled, what is computed further from a gradient is rounded by how it lies in memory, so it stays as it is in eager.
        is_known = detect_fake_mode(tensors) is not None
        arguments = ([grads[place] for place in given], tensors, ctx.autocast, given, needed, is_known)
        for place, each in zip(needed, _run_backward(ctx.plan, *arguments), strict=True):
            found[place] = each
    return None, found, None


_run.register_autograd(_backward, setup_context=_setup_context)
