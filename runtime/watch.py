# SPDX-License-Identifier: Apache-2.0
"""Notices that dicts, tensors or classes of objects changed, at a nanosecond for each dict: with what Dynamo's guards are made of."""

from collections.abc import Iterable
from typing import Any

import torch


class UnwatchableError(Exception):
    """This PyTorch has no guards that can be put together from outside."""


class _Holder:
    """Has the dicts as attributes: Dynamo's guards remember the versions of all dicts below an object that weak references can
    be made to."""


class Watch:
    """Whether dicts, tensors and the classes of objects are as they were when this was made.

    Args:
        dicts: Any change of an entry counts, also to an equal value.
        tensors: Class, dtype, device, sizes, strides and `requires_grad` count; values don't.
        instances: Their classes alone count: a class that is assigned is in no dict.
    """

    def __init__(
        self, dicts: Iterable[dict[Any, Any]], tensors: Iterable[torch.Tensor], instances: Iterable[object] = ()
    ) -> None:
        """
        Raises:
            UnwatchableError: Dynamo's guards have another interface in this PyTorch.
        """
        from torch._C._dynamo.guards import RootGuardManager
        from torch._dynamo.guards import GuardManagerType

        self._root = RootGuardManager()
        self._kind = GuardManagerType.GUARD_MANAGER
        self._values: list[Any] = [_Holder()]
        # Held, so that no other class gets the address of one.
        self._classes: set[type] = set()
        try:
            self._add_dicts(self._values[0], dicts)
            for tensor in tensors:
                self._leaf(tensor).add_tensor_match_guard(
                    tensor,
                    list(tensor.shape),
                    list(tensor.stride()),
                    "tensor",
                    ["tensor"],
                    None,
                    type(tensor),
                    torch._C._dispatch_keys(tensor),
                )
            for each in instances:
                self._classes.add(type(each))
                self._leaf(each).add_type_match_guard(id(type(each)), ["class"], None)
        except (AttributeError, TypeError) as error:
            raise UnwatchableError(f"this PyTorch's guards can't be used to watch modules ({error})") from error
        # A bound method, because it is called for every forward.
        self._check = self._root.check
        # The first check notes the versions.
        self._check(self._values)

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return bool(self._check(self._values))

    def _add_dicts(self, holder: _Holder, dicts: Iterable[dict[Any, Any]]) -> None:
        own = holder.__dict__
        own |= {f"dict{index}": each for index, each in enumerate(dicts)}
        top = self._root.list_getitem_manager(0, "watched[0]", holder, self._kind)
        table = top.get_generic_dict_manager("watched[0].__dict__", own, self._kind)
        managers = [top, table]
        for name, each in own.items():
            manager = table.dict_getitem_manager(name, f"watched[0].{name}", each, self._kind)
            # Asked where the versions that the holder's guard noted have changed, and in a PyTorch that notes none.
            manager.add_dict_version_guard(each, ["dict"], None)
            managers.append(manager)
        if hasattr(top, "mark_tag_safe_root"):
            for manager in managers:
                manager.mark_tag_safe()
            top.mark_tag_safe_root()

    def _leaf(self, value: Any) -> Any:
        index = len(self._values)
        self._values.append(value)
        return self._root.list_getitem_manager(index, f"watched[{index}]", value, self._kind)
