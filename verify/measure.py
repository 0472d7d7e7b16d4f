"""How far two results are apart: outputs of any structure, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache

from .results import Difference

ULPS = 64
"""How many units in the last place of a tensor's largest value two ways to compute it may be apart, where upstream itself
computes in two ways. A reduction over some hundred elements in another order stays below; a wrong operand doesn't."""

FUSED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""How far the results of a backend that fuses operations may be from eager's, relative to the largest value, by dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """Results that differ in more than rounding."""

    message: str


def leaves(value: Any, path: str = "output") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value in an output, with a name; caches by their layers."""
    if value is None or isinstance(value, torch.Tensor | bool | int | float | str):
        yield path, value
    elif isinstance(value, EncoderDecoderCache):
        yield from leaves(value.self_attention_cache, f"{path}.self")
        yield from leaves(value.cross_attention_cache, f"{path}.cross")
    elif isinstance(value, Cache):
        for index, layer in enumerate(value.layers):
            for name, each in sorted(vars(layer).items()):
                if isinstance(each, torch.Tensor):
                    yield f"{path}.{index}.{name}", each
                elif isinstance(each, dict | list | tuple):
                    yield from leaves(each, f"{path}.{index}.{name}")
    elif isinstance(value, Mapping):
        for name in value:
            yield from leaves(value[name], name if path == "output" else f"{path}.{name}")
    elif isinstance(value, Sequence):
        for index, each in enumerate(value):
            yield from leaves(each, f"{path}.{index}")
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from leaves(getattr(value, each.name, None), f"{path}.{each.name}")
    else:
        # A distribution, a custom object: its tensors, by attribute.
        for name, each in sorted(getattr(value, "__dict__", {}).items()):
            if isinstance(each, torch.Tensor):
                yield f"{path}.{name}", each


def frozen(value: Any) -> dict[str, Any]:
    """A copy of an output that later calls can't change."""
    return {name: each.detach().clone() if isinstance(each, torch.Tensor) else each for name, each in leaves(value)}


def is_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two outputs are equal to the last bit, in structure, dtypes and shapes too. A NaN equals a NaN."""
    return list(one) == list(other) and all(_same(one[name], other[name]) for name in one)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
            return False
        if torch.equal(one, other):
            return True
        return one.is_floating_point() and bool(((one == other) | (one.isnan() & other.isnan())).all())
    if type(one) is not type(other):
        return False
    return bool(one == other or (one != one and other != other))


def finite_share(output: Mapping[str, Any]) -> float:
    """Of all numbers in an output, how many are finite."""
    total = finite = 0
    for value in output.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            total += value.numel()
            # A mask holds the lowest number of its dtype, which is finite.
            finite += int(value.isfinite().sum())
    return finite / total if total else 1.0


def difference(
    found: Mapping[str, Any], expected: Mapping[str, Any], *, dtype: torch.dtype | None, fused: bool
) -> Difference | Mismatch:
    """The largest difference between two outputs, or why they can't be compared or aren't close.

    Args:
        found: Names to values, as `frozen` gives them.
        expected: The same of upstream in eager.
        dtype: The precision of the computation, where that is lower than the outputs' own (autocast).
        fused: Whether the backend may fuse and reorder; else only `ULPS` are allowed.
    """
    if list(found) != list(expected):
        missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        return Mismatch(message=f"it has other outputs: missing {missing[:4]}, extra {extra[:4]}")
    largest = Difference(absolute=0.0, relative=0.0, allowed=0.0, where="")
    worst: str | None = None
    for name, theirs in expected.items():
        ours = found[name]
        if _same(ours, theirs):
            continue
        if not (isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)):
            return Mismatch(message=f"{name} is {_brief(ours)}, upstream's is {_brief(theirs)}")
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return Mismatch(message=f"{name} is {_brief(ours)}, upstream's is {_brief(theirs)}")
        if not theirs.is_floating_point():
            return Mismatch(message=f"{name} differs in {int((ours != theirs).sum())} of {theirs.numel()} values")
        one, other = ours.double(), theirs.double()
        if bool((one.isfinite() != other.isfinite()).any()):
            return Mismatch(message=f"{name} has other infinities or NaNs than upstream's")
        both = one.isfinite()
        absolute = float((one - other)[both].abs().max()) if bool(both.any()) else 0.0
        scale = float(other[both].abs().max()) if bool(both.any()) else 0.0
        relative = absolute / scale if scale else float(absolute > 0)
        precision = _coarser(theirs.dtype, dtype)
        allowed = FUSED[precision] if fused else ULPS * torch.finfo(precision).eps
        if relative > largest.relative or not largest.where:
            largest = Difference(absolute=absolute, relative=relative, allowed=allowed, where=name)
        if relative > allowed and worst is None:
            worst = f"{name} differs by {absolute:.2g} ({relative:.2g} of its largest value; {allowed:.2g} would be allowed)"
    return largest if worst is None else Mismatch(message=worst)


def _coarser(one: torch.dtype, other: torch.dtype | None) -> torch.dtype:
    return other if other is not None and torch.finfo(other).eps > torch.finfo(one).eps else one


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)[:60]
