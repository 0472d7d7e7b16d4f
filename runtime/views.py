# SPDX-License-Identifier: Apache-2.0
"""Arguments that are views of other tensors, which a graph needn't know of."""

from typing import Any

import torch

from .graph_buffers import KEPT


def without_bases(arguments: dict[str, Any]) -> None:
    """Exchange views among a core's arguments for tensors of the same storage that nothing is known to be behind, in place.

    Dynamo also guards on the sizes and strides of what an argument is a view of, by which upstream's code goes nowhere: images of
    which a caller drops a dimension took a graph for each shape that they had before. What is differentiated stays as it is, and
    what the runtime keeps from call to call.

    Args:
        arguments: The core's arguments by name. Only tensors among them, not those inside of others, are exchanged.
    """
    for name, value in arguments.items():
        if type(value) is torch.Tensor and value._is_view() and not value.requires_grad and not hasattr(value, KEPT):
            # No view to autograd, though its memory and its version are the same.
            arguments[name] = value.detach()
