# SPDX-License-Identifier: Apache-2.0
"""What a compiled form takes from a module tree, in words that another process understands, and whether it still holds.

Dynamo's guards look at what upstream's forward reads. A loaded artifact has none on the module, so everything that a
forward could read counts: classes, plain attributes, configs, hooks, and the kind of each parameter and buffer.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from datetime import date, time
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as nn_module
from torch.utils.hooks import RemovableHandle
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .caches import LAYER_INDEX
from .parallel import is_distributed, layout, local_part, spell_forward
from .watch import UnwatchableError, Watch

_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size, torch.memory_format)
# A bare module's own attributes are looked at one by one below, or don't matter to a forward.
INTERNAL = (frozenset(nn.Module().__dict__) - {"training"}) | {"name_or_path", "warnings_issued", "forward"}
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# Where a config came from, and what it is called: no forward reads them.
_IRRELEVANT_CONFIG = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "auto_map",
        "name_or_path",
        "transformers_version",
        "vgen_options",
    }
)
# The same of values: where something lies and when it was made.
_IRRELEVANT_TYPES = (PurePath, date, time)
# Their entries say what the name of an attention implementation stands for.
REGISTRIES: tuple[Any, ...] = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)


class UnsuitableError(Exception):
    """A module that no artifact may serve; the message says which field of which module stands in the way."""


class Fingerprint:
    """A description of a module tree, and a watch over it.

    Attributes:
        lines: For each module by path, and each config, one line.
        digest: The sha256 of the lines, in hex: equal in two processes for modules that one artifact can serve.
    """

    def __init__(self, module: nn.Module, index: int | None = None) -> None:
        """
        Args:
            module: The root of the tree.
            index: That of a layer, which it asks caches for. Put in words, it is the same for all layers.

        Raises:
            UnsuitableError: A hook, a tensor subclass, a replaced forward, or an attribute that can't be put in words.
        """
        if nn_module._has_any_global_hook():  # type: ignore[no-untyped-call]
            raise UnsuitableError("a global module hook is installed")
        self._dicts: list[dict[Any, Any]] = [
            each for registry in REGISTRIES for each in (registry._global_mapping, registry._local_mapping)
        ]
        # And what was in each when this was made.
        self._lists: list[list[Any]] = []
        self._listed: list[list[Any]] = []
        self._sets: list[set[Any]] = []
        self._contained: list[set[Any]] = []
        self._tensors: list[torch.Tensor] = []
        self._names: dict[int, str] = {}
        self._configs: dict[int, str] = {}
        # Modules and configs.
        self._instances: list[object] = []
        self._hooks: list[dict[Any, Any]] = []
        self._index = index
        # Read first: what changes while this looks makes the next check fail.
        self._handles = RemovableHandle.next_id
        self.lines: dict[str, str] = {}
        for path, each in module.named_modules(remove_duplicate=False):
            self._add(path, each)
        text = "\n".join(f"{path}: {line}" for path, line in sorted(self.lines.items()))
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        try:
            self._watch = Watch(self._dicts, self._tensors, self._instances)
        except UnwatchableError as error:
            raise UnsuitableError(str(error)) from error

    def holds(self) -> bool:
        """Whether the module tree is as it was, as far as a compiled form can tell."""
        if self._handles != RemovableHandle.next_id:
            if any(self._hooks):
                return False
            self._handles = RemovableHandle.next_id
        return (
            self._watch.holds()
            and self._lists == self._listed
            and self._sets == self._contained
            and not nn_module._has_any_global_hook()  # type: ignore[no-untyped-call]
        )

    def _add(self, path: str, module: nn.Module) -> None:
        if id(module) in self._names:
            self.lines[path] = f"the same as {self._names[id(module)]}"
            return
        self._names[id(module)] = path
        self._instances.append(module)
        where = path or "the module"
        own = module.__dict__
        parts = [_spell_type(type(module), where)]
        if "forward" in own:
            spelled = spell_forward(own["forward"], module, lambda value: self._value(value, f"{where}.forward"))
            if spelled is None:
                raise UnsuitableError(f"{where} has a forward of its own, put there after it was made")
            parts.append(f"forward={spelled}")
        for name in _HOOKS:
            if own[name]:
                raise UnsuitableError(f"{where} has hooks ({name})")
            self._hooks.append(own[name])
        self._dicts.append(own)
        for name, value in sorted(own.items()):
            if name == LAYER_INDEX and value is not None and value == self._index:
                parts.append(f"{name} of the layer")
            elif name not in INTERNAL and not name.startswith("_vgen"):
                parts.append(f"{name}={self._value(value, f'{where}.{name}')}")
        for kind in ("_parameters", "_buffers"):
            tensors: dict[str, torch.Tensor | None] = own[kind]
            self._dicts.append(tensors)
            parts.extend(f"{name}={self._tensor(value, f'{where}.{name}')}" for name, value in tensors.items())
        self._dicts.append(own["_modules"])
        if own["_modules"]:
            parts.append(f"children={','.join(f'{n}' for n, c in own['_modules'].items() if c is not None)}")
        self.lines[path] = "; ".join(parts)

    def _tensor(self, value: torch.Tensor | None, where: str) -> str:
        if value is None:
            return "None"
        is_split = is_distributed(value)
        if type(value) not in (torch.Tensor, nn.Parameter) and not is_split:
            raise UnsuitableError(f"{where} is a {type(value).__module__}.{type(value).__qualname__}")
        known = self._names.get(id(value))
        if known is not None:
            return f"the same as {known}"
        self._names[id(value)] = where
        part = local_part(value) if is_split else value
        self._tensors.append(part)
        if part.layout is not torch.strided or part.is_quantized:
            raise UnsuitableError(f"{where} is a tensor of layout {part.layout}")
        whole = f", of {layout(value)}" if is_split else ""
        return f"{type(value).__name__}({part.dtype}, {part.device}, {tuple(part.shape)}, {part.stride()}{whole})"

    def _value(self, value: Any, where: str) -> str:
        if value is None or type(value) in _PLAIN:
            return repr(value)
        if isinstance(value, Enum):
            return str(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value, where)
        if isinstance(value, nn.Module):
            # A plain reference to a module that is elsewhere in the tree; one outside of it isn't looked at.
            known = self._names.get(id(value))
            if known is None:
                raise UnsuitableError(f"{where} is a module that isn't a child")
            return f"the module {known}"
        if isinstance(value, list):
            self._lists.append(value)
            self._listed.append(list(value))
            return "[" + ", ".join(self._value(each, f"{where}[{i}]") for i, each in enumerate(value)) + "]"
        if isinstance(value, tuple):
            return "(" + ", ".join(self._value(each, f"{where}[{i}]") for i, each in enumerate(value)) + ")"
        if isinstance(value, set | frozenset):
            if isinstance(value, set):
                self._sets.append(value)
                self._contained.append(set(value))
            return "{" + ", ".join(sorted(self._value(each, where) for each in value)) + "}"
        if isinstance(value, dict):
            self._dicts.append(value)
            return (
                "{" + ", ".join(f"{k!r}: {self._value(v, f'{where}[{k!r}]')}" for k, v in _items(value, where)) + "}"
            )
        if isinstance(value, type):
            return _spell_type(value, where)
        if hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            return self._config(value, where)
        if isinstance(value, partial):
            self._dicts.append(value.keywords)
            parts = (value.func, value.args, value.keywords)
            return f"partial({', '.join(self._value(each, where) for each in parts)})"
        if isinstance(value, BuiltinFunctionType):
            name = value.__name__
            if any(getattr(place, name, None) is value for place in (torch, torch.nn.functional)):
                return f"torch's {name}"
        elif callable(value) and is_importable(value):
            return f"{value.__module__}.{value.__qualname__}"
        raise UnsuitableError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which can't be put in words"
        )

    def _config(self, config: Any, where: str) -> str:
        known = self._configs.get(id(config))
        if known is None:
            known = f"config {len(self._configs)}"
            self._configs[id(config)] = known
            self._instances.append(config)
            own = config.__dict__
            self._dicts.append(own)
            parts = [_spell_type(type(config), where)]
            for name, value in sorted(own.items()):
                if name not in _IRRELEVANT_CONFIG and not isinstance(value, _IRRELEVANT_TYPES):
                    parts.append(f"{name}={self._value(value, f'{where}.{name}')}")
            self.lines[known] = "; ".join(parts)
        return known


def _items(value: Mapping[Any, Any], where: str) -> Iterator[tuple[Any, Any]]:
    for key in value:
        if not isinstance(key, str | int | float | bool | None):
            raise UnsuitableError(f"{where} has a key of type {type(key).__qualname__}")
    yield from sorted(value.items(), key=lambda item: (type(item[0]).__name__, repr(item[0])))


def is_importable(value: Any) -> bool:
    """Whether the name that a class or a function has leads to it, and to no other one that was put there."""
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for name in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is value


def _spell_type(kind: type, where: str) -> str:
    # Of a module that was loaded again, the name leads to another class than an older instance has.
    if kind.__module__ != "builtins" and not is_importable(kind):
        raise UnsuitableError(f"{where} is of class {kind.__module__}.{kind.__qualname__}, which no import finds")
    return f"{kind.__module__}.{kind.__qualname__}"
