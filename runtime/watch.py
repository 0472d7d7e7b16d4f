# SPDX-License-Identifier: Apache-2.0
"""Notices that dicts or tensors changed, at tens of nanoseconds each: with the leaves of Dynamo's guards."""

from collections.abc import Iterable
from typing import Any

import torch


class UnwatchableError(Exception):
    """This PyTorch has no guards that can be put together from outside."""


class Watch:
    """Whether dicts and tensors are as they were when this was made.

    Args:
        dicts: Any change of an entry counts, also to an equal value.
        tensors: Class, dtype, device, sizes, strides and `requires_grad` count; values don't.
    """

    def __init__(self, dicts: Iterable[dict[Any, Any]], tensors: Iterable[torch.Tensor]) -> None:
        """
        Raises:
            UnwatchableError: Dynamo's guards have another interface in this PyTorch.
        """
        from torch._C._dynamo.guards import RootGuardManager
        from torch._dynamo.guards import GuardManagerType

        self._root = RootGuardManager()
        self._values: list[Any] = []
        try:
            for each in dicts:
                self._leaf(each, GuardManagerType.GUARD_MANAGER).add_dict_version_guard(each, ["dict"], None)
            for tensor in tensors:
                self._leaf(tensor, GuardManagerType.GUARD_MANAGER).add_tensor_match_guard(
                    tensor,
                    list(tensor.shape),
                    list(tensor.stride()),
                    "tensor",
                    ["tensor"],
                    None,
                    type(tensor),
                    torch._C._dispatch_keys(tensor),
                )
        except (AttributeError, TypeError) as error:
            raise UnwatchableError(f"this PyTorch's guards can't be used to watch modules ({error})") from error
        # A bound method, because it is called for every forward.
        self._check = self._root.check

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return bool(self._check(self._values))

    def _leaf(self, value: Any, kind: Any) -> Any:
        index = len(self._values)
        self._values.append(value)
        return self._root.list_getitem_manager(index, f"watched[{index}]", value, kind)
