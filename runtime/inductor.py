# SPDX-License-Identifier: Apache-2.0
"""Inductor as the backend of cores: its settings, and the passes over a graph before it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._dynamo.backends.common import AotAutograd
from torch.fx import GraphModule

from .decode_passes import attend_in_parts, multiply_rows
from .graph_only import refuse
from .graph_passes import align_matrices, flatten_patch_convolutions

# Torch 2.11's Inductor decides by the sizes at hand whether to pad a matrix product, and guards on the answer: a vision
# encoder compiled anew for small images, and again for larger ones after them (_inductor/fx_passes/pad_mm.py). So it is
# decided here: always where many rows meet odd widths, never where one row does, as in a decode step. Without gradients
# `graph_passes` does it better on a GPU: Inductor copies the weights in every call.
_PADDED: dict[str, Any] = {"force_shape_pad": True}
_UNPADDED: dict[str, Any] = {"shape_padding": False}
# Of a chain of residual sums Inductor writes every fourth only, and each norm after one adds up again what came since: up to five
# tensors, for which a vision encoder's norms took 1.5 ms instead of 1.1 at 5476 tokens. Written each time, they are also rounded
# as in eager.
_EVERY_SUM: dict[str, Any] = {"realize_reads_threshold": 1}


class Inductor(AotAutograd):
    """What `torch.compile` itself makes of "inductor" and a mode, with the settings that suit the graph.

    Of the kind of backends whose results PyTorch can save.

    Args:
        mode: That of the options.
        has_gradients: Whether it is compiled for calls with gradients.
        is_padded: See `CompiledCore`.
        is_launched: No CUDA graph replays it: the host launches each kernel, for which operators of the runtime's own take it
            longer than their kernels are faster.
        settings: Inductor's, besides.
        graph_only: See `CompiledCore`.
    """

    def __init__(
        self,
        mode: str | None,
        *,
        has_gradients: bool,
        is_padded: bool,
        is_launched: bool = False,
        settings: Mapping[str, Any] | None = None,
        graph_only: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._mode = mode
        self._has_gradients = has_gradients
        self._is_padded = is_padded
        self._is_launched = is_launched
        self._settings = dict(settings or {})
        self._graph_only = graph_only

    def __call__(self, gm: GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        refuse(gm, self._graph_only)
        settings = _PADDED if self._is_padded else _UNPADDED
        if not self._has_gradients and any(getattr(each, "is_cuda", False) for each in example_inputs):
            flatten_patch_convolutions(gm)
            if self._is_padded:
                align_matrices(gm)
                settings = _UNPADDED | _EVERY_SUM
            elif not self._is_launched:
                multiply_rows(gm)
                attend_in_parts(gm)
        wrapper = torch._TorchCompileInductorWrapper(self._mode, settings | self._settings, True)  # type: ignore[no-untyped-call]
        compiled: Callable[..., Any] = wrapper(gm, example_inputs)
        return compiled
