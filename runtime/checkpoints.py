# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpoints in graphs that run as they are captured, with backward's random numbers those of forward."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

# Backends without AOTAutograd.
RUN_AS_CAPTURED = ("eager", "eager_noexcept", "eager_debug")


def as_in_eager(backend: Callable[..., Any]) -> Callable[..., Any]:
    """A backend that runs graphs as they are captured, with gradient checkpoints that keep the state of random numbers.

    PyTorch's operator for a checkpoint leaves that to AOTAutograd: without it, what backward computes again has other dropout
    than forward had, and its gradients are another forward's.
    """

    def checkpointing(graph: GraphModule, example_inputs: list[torch.Tensor]) -> Any:
        for part in graph.modules():
            if not isinstance(part, GraphModule):
                continue
            found = part.graph.find_nodes(op="call_function", target=torch.ops.higher_order.tag_activation_checkpoint)
            for node in found:
                node.target = _checkpoint
            if found:
                part.recompile()
        return backend(graph, example_inputs)

    return checkpointing


def _checkpoint(function: GraphModule, *arguments: Any, preserve_rng_state: bool = True, **_: Any) -> Any:
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=preserve_rng_state)
