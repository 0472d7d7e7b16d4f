# SPDX-License-Identifier: Apache-2.0
"""The key of an artifact: the digest of everything that its code depends on."""

import hashlib
import json
import platform
import sys
from collections.abc import Hashable, Iterable, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .contract import Contract
from .fingerprint import Fingerprint, UnsuitableError, is_importable
from .settings import Options

Fields = dict[str, Any]


def fields(
    module: nn.Module,
    *,
    tag: str,
    contract: Contract,
    options: Options,
    variant: Hashable,
    fingerprint: Fingerprint,
    is_padded: bool,
) -> Fields:
    """What an artifact's code depends on, by name, as JSON holds it.

    Raises:
        UnsuitableError: Something that no other process could recognise: a backend that is a callable, for one.
    """
    if options.backend != "inductor":
        raise UnsuitableError(f"only what Inductor compiled can be saved, and the backend is {options.backend!r}")
    return {
        "tag": tag,
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "contract": repr(contract.arguments),
        "variant": spell(variant),
        "mode": options.mode,
        "padded": is_padded,
        "sources": _sources(module),
        "vgen": _runtime(),
        "attention": _attention(module),
        "module": dict(fingerprint.lines),
        "torch settings": _settings(),
        **_machine(module),
    }


def digest(found: Fields) -> str:
    """The key: the sha256 of the fields, in hex."""
    return hashlib.sha256(json.dumps(found, sort_keys=True, allow_nan=False).encode()).hexdigest()


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Which fields differ, one line each, with both values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return [
            line
            for name in sorted({*one, *other})
            for line in differences(one.get(name), other.get(name), f"{path}.{name}" if path else str(name))
        ]
    if one == other:
        return []
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        # A variant has the name of an argument in front of what it says of it.
        names = [str(index) for index in range(len(one))]
        names[1:] = [
            before if isinstance(before, str) and before.isidentifier() else name
            for before, name in zip(one, names[1:], strict=False)
        ]
        return [
            line
            for ours, theirs, name in zip(one, other, names, strict=True)
            for line in differences(ours, theirs, f"{path}.{name}")
        ]
    if isinstance(one, str) and isinstance(other, str) and "; " in one:
        ours, theirs = one.split("; "), other.split("; ")
        one = "; ".join(each for each in ours if each not in theirs) or "-"
        other = "; ".join(each for each in theirs if each not in ours) or "-"
    return [f"{path}: {one} here, {other} there"]


def nearest(wanted: Fields, others: Iterable[Fields]) -> list[str] | None:
    """The fields that differ from the nearest of others, one line each; None where there are no others."""
    return min((differences(wanted, each) for each in others), key=len, default=None)


def spell(value: Any) -> Any:
    """A variant in JSON, the same in every process.

    Raises:
        UnsuitableError: It has something that can't be spelled so.
    """
    match value:
        case None | str():
            return value
        case Enum():
            return str(value)
        case bool() | int():
            return value
        case float() | bytes():
            return repr(value)
        case type():
            return f"{value.__module__}.{value.__qualname__}"
        case tuple() | list():
            return [spell(each) for each in value]
        case frozenset():
            return sorted((spell(each) for each in value), key=repr)
        case torch.dtype() | torch.device() | torch.memory_format() | torch.layout():
            return str(value)
    raise UnsuitableError(f"an argument is or holds a {type(value).__module__}.{type(value).__qualname__}")


def _machine(module: nn.Module) -> Fields:
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    found: Fields = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cuda": None,
        "triton": None,
        "gpu": None,
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found["cuda"] = torch.version.cuda or torch.version.hip
        found["triton"] = _version("triton")
        found["gpu"] = f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})"
    return found


def _settings() -> Fields:
    backends = torch.backends
    return {
        "default dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        # Inductor divides loops among so many.
        "threads": torch.get_num_threads(),
        "sdp": [
            backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
            backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
            backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
            backends.cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
        ],
        "tf32": [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32],
    }


def _attention(module: nn.Module) -> list[str]:
    """The functions that the attention implementations of a module's configs stand for.

    Raises:
        UnsuitableError: One of them was registered by somebody else, so that its name doesn't say what it is.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found = set()
    for each in module.modules():
        name = getattr(getattr(each, "config", None), "_attn_implementation", None)
        if name is None:
            continue
        for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            function = registry.get(name)
            if function is None:
                continue
            spelled = ".".join(f"{getattr(function, part, None)}" for part in ("__module__", "__qualname__"))
            # A function that wraps another one may have taken its name.
            if not spelled.startswith("transformers.") or not is_importable(function):
                raise UnsuitableError(f'attention "{name}" is {spelled}, which was registered by somebody else')
            found.add(f"{name}: {spelled}")
    return sorted(found)


def _sources(module: nn.Module) -> dict[str, str]:
    """The digests of the files that define the classes of a module tree, other than PyTorch's, by import name.

    Those of a generated package are those of its `vgen.lock` too: it is checked when the package is imported.
    """
    names = {kind.__module__ for each in module.modules() for kind in type(each).__mro__}
    return {
        name: _source_digest(name)
        for name in sorted(names)
        if name.partition(".")[0] not in ("torch", "builtins", "abc", "typing")
    }


def _source_digest(name: str) -> str:
    path = getattr(sys.modules.get(name), "__file__", None)
    if path is None:
        raise UnsuitableError(f"a class of the model is from {name}, which has no source file")
    found = Path(path).stat()
    return _file_digest(path, found.st_mtime_ns, found.st_size)


@cache
def _file_digest(path: str, changed: int, size: int) -> str:
    """Of a file as it was last changed: it may be edited, and loaded again, while this runs."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@cache
def _runtime() -> str:
    """The digest of what makes and calls compiled code: this package."""
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        whole.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


@cache
def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
