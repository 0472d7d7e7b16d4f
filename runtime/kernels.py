# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels of a compiled form, as libraries: PyTorch saves only their source, and would compile it where it is loaded."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A precompiled header is made before a library is looked for. Part of each library's name, so it is set in both places.
SETTINGS: dict[str, Any] = {"cpp_cache_precompile_headers": False}
# What the processor can is in an artifact's key. Inductor would start a Python process to find it out.
LOADING = SETTINGS | {"cpp.vec_isa_ok": True}
# As Inductor names what it compiles: a folder of two letters, and the hash of source and command.
_NAME = re.compile(r"[a-z0-9]{2}/c[a-z0-9]{20,60}(\.main)?\.so")
# Inductor compiles such to find out what the processor's extensions are, some of them in any case. Kernels are larger.
_LARGEST_CHECK = 40_000


@contextmanager
def recorded() -> Iterator[dict[str, bytes]]:
    """Fills in, at its end, the libraries that were compiled or loaded within it, by their place in Inductor's cache."""
    from torch._inductor.codecache import CppCodeCache

    loaded: list[dict[str, Any]] = [vars(each)["cache"] for each in _family(CppCodeCache) if "cache" in vars(each)]
    before = [dict(each) for each in loaded]
    for each in loaded:
        each.clear()
    found: dict[str, bytes] = {}
    try:
        yield found
        folder = _folder()
        for path in sorted(folder.glob("*/c*.so")):
            name = f"{path.parent.name}/{path.name}"
            is_check = not path.name.endswith(".main.so") and path.stat().st_size < _LARGEST_CHECK
            if _NAME.fullmatch(name) and (is_check or any(path.name.partition(".")[0] in each for each in loaded)):
                found[name] = path.read_bytes()
    finally:
        for each, old in zip(loaded, before, strict=True):
            each.update(old)


def install(libraries: Mapping[str, bytes]) -> None:
    """Put libraries where Inductor looks for them. Those that are there already stay."""
    folder = _folder()
    for name, data in libraries.items():
        path = folder / name
        if not _NAME.fullmatch(name) or path.exists():
            continue
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(partial).chmod(0o700)
        Path(partial).replace(path)


def _folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def _family(kind: type) -> Iterator[type]:
    yield kind
    subclasses: list[type] = kind.__subclasses__()
    for each in subclasses:
        yield from _family(each)
