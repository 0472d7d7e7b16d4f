# SPDX-License-Identifier: Apache-2.0
"""Runs prologues: what depends on the values of a few small integers (grids) is computed on the CPU, once for each grid."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any, Self

import torch

from .contract import Contract
from .graph_buffers import KEPT

# Results that are kept for one module: a stream of images has few sizes, and one result is a few hundred kilobytes.
MAX_KEPT = 64
# Larger integer tensors are masks or token ids rather than grids: these are worked on where they are.
MAX_VALUES = 4096

_PLAIN = frozenset({bool, int, float, str})

_Key = tuple[Hashable, ...]


class Prologues:
    """The latest results of one module's prologue, by what they were computed from. A copy of the module starts without."""

    def __init__(self) -> None:
        self.kept: OrderedDict[_Key, dict[str, Any]] = OrderedDict()
        self.on_host = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


def run(
    prologues: Prologues,
    module: Any,
    contract: Contract,
    reads: Mapping[str, Any],
    kwargs: dict[str, Any],
    inner: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The results of `module.prologue(**reads, kwargs=kwargs)`, on the device that the module computes on.

    Where all that it reads is small integers, they are read by the host (a synchronisation only where they lie on a
    device), the helpers run on the CPU, which spares a GPU dozens of tiny kernels, and the results are kept: they
    depend on nothing else but the settings of the module and its parts. Where the caller passed a result in `kwargs`, or it reads
    other tensors, it runs where these are.

    Args:
        prologues: What was computed before.
        module: A region's module, with a `prologue` method.
        contract: The region's contract: says which results are bounds of segment lengths.
        reads: The forward's arguments that the prologue reads, by name.
        kwargs: The forward's other keyword arguments. Upstream's helpers take their results from it.
        inner: The parts of the module whose attributes the prologue reads, too.
    """
    device = _device(module, reads)
    values = _values(reads)
    if values is None or not prologues.on_host or any(map(_is_result, kwargs.values())):
        return _placed(module.prologue(**reads, kwargs=kwargs), contract, device)
    settings = map(_settings, (module, *map(module.get_submodule, inner)))
    key = (values, device, torch.get_default_dtype(), *settings)
    found = prologues.kept.get(key)
    if found is not None:
        prologues.kept.move_to_end(key)
        return found
    on_host = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in reads.items()}
    # Outside of inference mode, whatever the caller's: what is kept also serves calls that record gradients.
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            found = _placed(module.prologue(**on_host, kwargs=dict(kwargs)), contract, device)
    except RuntimeError:
        # A helper that also reads the module's own tensors needs all on one device. Upstream's own errors come again.
        prologues.on_host = False
        return _placed(module.prologue(**reads, kwargs=kwargs), contract, device)
    for value in found.values():
        if isinstance(value, torch.Tensor):
            setattr(value, KEPT, True)
    prologues.kept[key] = found
    if len(prologues.kept) > MAX_KEPT:
        prologues.kept.popitem(last=False)
    return found


def _values(reads: Mapping[str, Any]) -> tuple[Hashable, ...] | None:
    """The values of all arguments, or None where they aren't all plain, or small integers."""
    found: list[Hashable] = []
    for value in reads.values():
        if isinstance(value, torch.Tensor):
            if value.is_floating_point() or value.is_complex() or value.numel() > MAX_VALUES or value.is_meta:
                return None
            found.append((value.dtype, value.shape, tuple(value.flatten().tolist())))
        elif value is None or isinstance(value, bool | int | str):
            found.append((type(value), value))
        else:
            return None
    return tuple(found)


def _is_result(value: object) -> bool:
    """Whether a keyword argument may be something that the caller computed instead of the prologue."""
    return isinstance(value, torch.Tensor | list | tuple) or type(value) is int


def _settings(module: Any) -> tuple[Hashable, ...]:
    """The plain attributes of a module and of its config, of which helpers read some, and its attention implementation."""
    config = getattr(module, "config", None)
    own = _plain(module), _plain(config) if config is not None else ()
    return getattr(config, "_attn_implementation", None), *own


def _plain(owner: Any) -> tuple[Hashable, ...]:
    """The names of the attributes of a module or config, and the values of those that are plain, or lists of such, as are the
    sizes of a kernel."""
    own = vars(owner)
    return *own, *[value if type(value) in _PLAIN else _entries(value) for value in own.values()]


def _entries(value: Any) -> tuple[Hashable, ...] | None:
    is_plain = type(value) in (list, tuple) and _PLAIN.issuperset(map(type, value))
    return tuple(value) if is_plain else None


def _device(module: Any, reads: Mapping[str, Any]) -> torch.device | None:
    """Where the results belong: with what was read, or with the weights where that is on the CPU. None: leave them."""
    for value in reads.values():
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            return value.device
    weight = next(iter(module.parameters()), None)
    return None if weight is None or weight.is_meta else weight.device


def _placed(results: dict[str, Any], contract: Contract, device: torch.device | None) -> dict[str, Any]:
    """Results on the device; on a GPU also the bounds of segment lengths, which upstream leaves out but for flash
    attention. Only where the ends of the segments are on the CPU: elsewhere it would take a synchronisation."""
    if device is None or device.type == "cpu":
        return results
    for name, ends in contract.segment_bounds.items():
        cu_seqlens = results.get(ends)
        if results.get(name, 0) is None and isinstance(cu_seqlens, torch.Tensor) and not cu_seqlens.is_cuda:
            results[name] = int(cu_seqlens.diff().max()) if cu_seqlens.numel() > 1 else 0
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in results.items()
    }
