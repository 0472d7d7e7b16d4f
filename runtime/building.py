# SPDX-License-Identifier: Apache-2.0
"""Compiles calls ahead of time, and saves what comes of it."""

import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from . import store
from .artifact import Call, Form, kept, load
from .caches import LAYER_INDEX, key_value_states
from .fingerprint import UnsuitableError
from .kernels import recorded
from .key import Fields, digest
from .saved_guards import is_kept, is_of_argument, relates
from .traced import Digests, Lines, Traced, lines_of

into: ContextVar[Path | None] = ContextVar("vgen_building", default=None)
"""The folder that a region which has no artifact for a call builds one into."""


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Within it, a region that has no artifact for a call builds one into a folder, and runs it."""
    token = into.set(folder)
    try:
        yield
    finally:
        into.reset(token)


def build(
    folder: Path,
    module: nn.Module,
    core: Any,
    call: Call,
    free: Sequence[Fields],
    arguments: dict[str, Any],
    kinds: frozenset[type],
) -> Form:
    """Compile a call ahead of time, save what comes of it, and load that.

    Args:
        folder: Where to.
        module: The region's module.
        core: Its class's core.
        call: The call.
        free: What an artifact may be saved under: first as one for any layer, last as one for this alone.
        arguments: The core's arguments by name.
        kinds: See `Traced`.

    Raises:
        UnsuitableError: It can't be compiled or saved.
        OSError: The folder can't be written to, or is full. Nothing is left there then.
    """
    from filelock import FileLock

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = [digest(each) for each in free]
    path = folder / store.file_name(call.tag, keys[0])
    # Whoever comes second finds the file; a lock of a process that was killed is the system's to release.
    with FileLock(folder / f".{path.name}.lock"):
        for key in keys:
            form = load(core, call.tag, key, (folder,), kinds)
            if form is not None and form.accepts(module, arguments):
                return form
        compiled = _compiled(module, core, call, arguments, kinds)
        place = free[-1 if compiled.is_of_one_layer else 0]
        header = {
            "key": digest(place),
            "tag": call.tag,
            "fields": place,
            "refs": compiled.refs,
            "lines": compiled.lines,
            "code": compiled.code,
            "complete": compiled.is_complete,
            "seconds": compiled.seconds,
            "libraries": {name: len(data) for name, data in compiled.libraries.items()},
        }
        payload = b"".join([*compiled.libraries.values(), compiled.payload])
        return kept(store.read(store.write(folder, header, payload)), core, folder, kinds)


@dataclass(frozen=True, kw_only=True)
class _Compiled:
    """What is saved of a call.

    Attributes:
        payload: What PyTorch serialized.
        libraries: The kernels' libraries, by name.
        refs: The modules that its globals refer to, by the name there.
        lines: Where the functions are that were traced.
        code: What the names in the code that was traced lead to: see `Traced`.
        is_complete: Whether the saved guards alone say which calls it serves.
        is_of_one_layer: Whether it holds for the index of its layer alone.
        seconds: How long that took.
    """

    payload: bytes
    libraries: dict[str, bytes]
    refs: dict[str, str]
    lines: Lines
    code: Digests
    is_complete: bool
    is_of_one_layer: bool
    seconds: float


def _compiled(
    module: nn.Module, core: Any, call: Call, arguments: dict[str, Any], kinds: frozenset[type]
) -> _Compiled:
    from .compiler import ahead_of_time
    from .light import lighten

    begun = time.monotonic()
    dropped: list[str] = []
    is_of_one_layer = False

    def keeps(entry: Any) -> bool:
        nonlocal is_of_one_layer
        is_saved = is_kept(entry)
        if not is_saved and is_of_argument(entry.name):
            dropped.append(entry.name)
        is_of_one_layer |= entry.name.endswith(f".{LAYER_INDEX}") and entry.guard_type != "TYPE_MATCH"
        return is_saved

    try:
        with _marked_static(call, arguments), recorded() as libraries:
            compiled = ahead_of_time(
                core,
                module,
                arguments,
                options=module.vgen_options,  # type: ignore[arg-type]
                is_shared=call.is_shared,
                is_padded=call.is_padded,
                has_fixed_ints=call.has_fixed_ints,
                graph_only=call.graph_only,
                is_plain=call.is_plain,
                keeps=keeps,
            )
        compiled._artifacts.source_info.inlined_sources = {
            # Its checksum is what counts; the text of whole files would be most of an artifact.
            replace(each, content="")
            for each in compiled.source_info().inlined_sources
        }
        is_of_one_layer |= relates(compiled, LAYER_INDEX)
        lines = lines_of(compiled.source_info().inlined_sources)
        code = Traced(lines, kinds, {}).digests
        lighten(compiled)
        payload = type(compiled).serialize(compiled).serialized_data
    except Exception as error:
        raise UnsuitableError(f"it can't be compiled ahead of time ({type(error).__name__}: {error})") from error
    found = {name: compiled.fn.__globals__.get(name) for name in sorted(compiled._artifacts.runtime_env.external_refs)}
    return _Compiled(
        payload=payload,
        libraries=libraries,
        refs={name: value.__name__ for name, value in found.items() if isinstance(value, types.ModuleType)},
        lines=lines,
        code=code,
        is_complete=not dropped,
        is_of_one_layer=is_of_one_layer,
        seconds=round(time.monotonic() - begun, 1),
    )


@contextmanager
def _marked_static(call: Call, arguments: dict[str, Any]) -> Iterator[None]:
    """Marks are attributes of tensors, and saved guards are for tensors that nobody marked."""
    given = [each for each in arguments.values() if isinstance(each, torch.Tensor)]
    caches = [each for each in arguments.values() if isinstance(each, Cache)]
    marked = [*given, *chain.from_iterable(map(key_value_states, caches))]
    before = [(each, dict(each.__dict__)) for each in marked]
    call.contract.mark_static(arguments, call.limits.fixed(arguments))
    try:
        yield
    finally:
        for tensor, attributes in before:
            tensor.__dict__.clear()
            tensor.__dict__.update(attributes)
