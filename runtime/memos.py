# SPDX-License-Identifier: Apache-2.0
"""What upstream's modules remember of one call for the next of the same length: rotary embeddings, by the length."""

from torch import nn

# Upstream's name of the length. Whatever else is remembered is asked for only where the length is the same.
_LENGTH = "cached_sequence_length"


class Memos:
    """The memos in one module and its parts.

    A graph holds for the length that it found there: each new length would compile once more. And what a graph leaves there
    is a tensor of its own, which no call outside of it should be given. So they are forgotten before and after every run of one:
    a module that finds nothing computes the same again.

    Args:
        module: A region's module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = [part for part in module.modules() if _LENGTH in part.__dict__]

    def forget(self) -> None:
        for part in self._parts:
            part.__dict__[_LENGTH] = None
