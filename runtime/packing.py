# SPDX-License-Identifier: Apache-2.0
"""Pads packed inputs to a few sizes, exactly: the padding is segments of its own, so no token attends to it."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .contract import Contract

# Sizes of inputs that are padded. Up to here a forward waits for its launches; above, the padding would cost more than a
# recorded graph saves.
MAX_TOKENS = 2048
# Fewer tokens could be the first size of something else, such as the taps of an interpolation.
MIN_TOKENS = 16
# Steps between padded sizes: an eighth of the power of two below, at least this.
MIN_STEP = 64
# The least bound on segment lengths that is told apart; bounds are powers of two.
MIN_BOUND = 16


def bucket_of(tokens: int) -> int:
    """The padded number of tokens: a multiple of 64, at most an eighth more than asked for from 512 tokens on."""
    step = max(MIN_STEP, 1 << max(tokens.bit_length() - 4, 0))
    return -(-tokens // step) * step


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One padded size of a core's packed arguments.

    Attributes:
        tokens: Padded number of tokens.
        ends: Of each argument with the ends of segments, its padded length and the longest segment of padding.
        bounds: Of each bound on segment lengths, its value.
        rows: The arguments with one row for each token, zero in the padding.
        permutations: The arguments that permute groups of tokens, with the padded number of groups.
    """

    tokens: int
    ends: tuple[tuple[str, int, int], ...]
    bounds: tuple[tuple[str, int], ...]
    rows: tuple[str, ...]
    permutations: tuple[tuple[str, int], ...]

    def allocate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Buffers for the padded arguments. Arguments that aren't padded are left out."""
        shapes: dict[str, tuple[int, ...]] = {name: (length,) for name, length, _ in self.ends}
        shapes |= {name: (groups,) for name, groups in self.permutations}
        shapes |= {name: (self.tokens, *arguments[name].shape[1:]) for name in self.rows}
        buffers: dict[str, Any] = dict(self.bounds)
        for name, shape in shapes.items():
            given = arguments[name]
            # Of the kind that the caller's is: Dynamo tells tensors that were made in inference mode apart.
            with torch.inference_mode(given.is_inference()), torch.no_grad():
                buffers[name] = torch.zeros(shape, dtype=given.dtype, device=given.device)
        return buffers

    def fill(self, buffers: Mapping[str, Any], arguments: Mapping[str, Any], names: frozenset[str]) -> None:
        """Write a call's arguments into buffers of `allocate`; those in `names` only."""
        for name, length, longest in self.ends:
            if name not in names:
                continue
            ends, buffer = arguments[name], buffers[name]
            given = ends.shape[0]
            buffer[:given].copy_(ends)
            if given < length:
                tokens = arguments[self.rows[0]].shape[0]
                padding = torch.arange(1, length - given + 1, dtype=buffer.dtype, device=buffer.device)
                buffer[given:].copy_(padding.mul_(longest).add_(tokens).clamp_(max=self.tokens))
        for name in self.rows:
            if name in names:
                value, buffer = arguments[name], buffers[name]
                buffer[: value.shape[0]].copy_(value)
                buffer[value.shape[0] :].zero_()
        for name, _ in self.permutations:
            if name in names:
                value, buffer = arguments[name], buffers[name]
                given = value.shape[0]
                buffer[:given].copy_(value)
                if given < buffer.shape[0]:
                    buffer[given:].copy_(
                        torch.arange(given, buffer.shape[0], dtype=buffer.dtype, device=buffer.device)
                    )

    def cut(self, output: torch.Tensor, tokens: int) -> torch.Tensor | None:
        """The part of an output of the padded call that belongs to a call with so many tokens; None if there is none."""
        if output.ndim == 0 or output.shape[0] == 0 or self.tokens % output.shape[0]:
            return None
        group = self.tokens // output.shape[0]
        return output[: tokens // group] if tokens % group == 0 else None

    def padding(self, arguments: Mapping[str, Any]) -> int:
        """How many tokens of a call are padding."""
        return self.tokens - int(arguments[self.rows[0]].shape[0])

    @property
    def padded(self) -> frozenset[str]:
        """The padded arguments that have no row for each token."""
        names = [name for name, *_ in self.ends] + [name for name, _ in (*self.bounds, *self.permutations)]
        return frozenset(names)

    @property
    def signature(self) -> Hashable:
        return (self.tokens, self.ends, self.bounds)


def bucket_for(contract: Contract, arguments: Mapping[str, Any]) -> Bucket | None:
    """The bucket of a call; None where its arguments aren't the known ones of packed encoders, or there are very few or
    many tokens.

    Known are, by the names that Transformers' `vision_utils` gives them: the ends of segments (`cu_seqlens`,
    `cu_window_seqlens`) with their bounds, a permutation of groups of tokens (`window_index`), and tensors with one row
    for each token. The order of tokens that a permutation leaves has to keep the segments in order, which it does:
    attention is packed.
    """
    bounds = contract.segment_bounds
    tokens = _tokens(contract, arguments)
    if tokens is None or not MIN_TOKENS <= tokens <= MAX_TOKENS or not bounds:
        return None
    padded = bucket_of(tokens)
    ends: list[tuple[str, int, int]] = []
    values: list[tuple[str, int]] = []
    for bound, name in bounds.items():
        given, longest = arguments.get(name), arguments.get(bound)
        if not isinstance(given, torch.Tensor) or given.ndim != 1 or type(longest) is not int or longest < 1:
            return None
        # Any bound will do; few different ones make few buckets.
        limit = max(MIN_BOUND, 1 << (longest - 1).bit_length())
        needed = given.shape[0] + -(-(padded - tokens) // limit)
        ends.append((name, (1 << max(needed - 2, 0).bit_length()) + 1, limit))
        values.append((bound, limit))
    rows, permutations = [], []
    device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            continue
        if value.device != device:
            return None
        if name in bounds.values():
            continue
        if value.ndim and value.shape[0] == tokens:
            rows.append(name)
        elif name.endswith("window_index") and value.ndim == 1 and value.shape[0] and tokens % value.shape[0] == 0:
            group = tokens // value.shape[0]
            if padded % group:
                return None
            permutations.append((name, padded // group))
        else:
            return None
    return Bucket(
        tokens=padded, ends=tuple(ends), bounds=tuple(values), rows=tuple(rows), permutations=tuple(permutations)
    )


def _tokens(contract: Contract, arguments: Mapping[str, Any]) -> int | None:
    """The number of tokens: the first dimension of the first floating tensor."""
    for value in arguments.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.shape[0] if value.ndim > 1 and value.shape[0] else None
    return None
