# SPDX-License-Identifier: Apache-2.0
"""A module that Transformers has split among processes (`from_pretrained(…, tp_plan=…)`), in words for an artifact's key.

Its weights are DTensors, and its linear layers have forwards put there by transformers/distributed/tensor_parallel.py, which hand
on inputs and outputs between the processes. What a graph holds of that depends on the layout and on this process's place in it.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

_UPSTREAM = "transformers.distributed.tensor_parallel"
_FORWARD = "tp_forward"


def is_distributed(value: torch.Tensor) -> bool:
    """Whether a tensor is one process's part of a larger one: a DTensor, or a parameter that is one."""
    return hasattr(value, "_spec") and hasattr(value, "_local_tensor")


def local_part(value: Any) -> torch.Tensor:
    """What this process holds of it, without communication."""
    found: torch.Tensor = value._local_tensor
    return found


def layout(value: Any) -> str:
    """How a DTensor is spread: the whole size, the placement on each dimension of the mesh, and the mesh."""
    placements = ", ".join(map(str, value.placements))
    return f"{tuple(value.shape)} placed {placements} on {spell_mesh(value.device_mesh)}"


def spell_mesh(mesh: Any) -> str:
    """A DeviceMesh: its kind of device, its dimensions with their process groups, its processes, and which of them this is."""
    groups = [mesh.get_group(dim).group_name for dim in range(mesh.ndim)]
    return (
        f"{mesh.device_type} mesh {mesh.mesh.tolist()} of {mesh.mesh_dim_names}, groups {groups}, "
        f"here {mesh.get_coordinate()}"
    )


def spell_forward(function: Any, module: nn.Module, spell: Callable[[Any], str]) -> str | None:
    """What upstream put in the place of a module's forward; None where it is something else.

    Args:
        function: The module's own `forward`.
        module: The module.
        spell: Puts a plain attribute in words.
    """
    if not isinstance(function, FunctionType) or not (
        function.__module__ == _UPSTREAM and function.__qualname__.endswith(f"<locals>.{_FORWARD}")
    ):
        return None
    held = dict(
        zip(function.__code__.co_freevars, (each.cell_contents for each in function.__closure__ or ()), strict=True)
    )
    original = held.pop("original_forward", None)
    if held.pop("module", None) is not module or not isinstance(original, MethodType):
        return None
    if original.__self__ is not module or original.__func__ is not type(module).forward:
        return None
    parts = [function.__qualname__]
    for name, value in sorted(held.items()):
        if name == "mesh":
            parts.append(spell_mesh(value))
        elif name == "self" and type(value).__module__.startswith("transformers."):
            own = ", ".join(f"{key}={_placement(each, spell)}" for key, each in sorted(vars(value).items()))
            parts.append(f"{type(value).__qualname__}({own})")
        else:
            return None
    return "; ".join(parts)


def _placement(value: Any, spell: Callable[[Any], str]) -> str:
    from torch.distributed.tensor import Placement

    if isinstance(value, list | tuple):
        return f"[{', '.join(_placement(each, spell) for each in value)}]"
    return repr(value) if isinstance(value, Placement) else spell(value)
