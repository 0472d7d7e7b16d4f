# SPDX-License-Identifier: Apache-2.0
"""Compiled forms that were saved, and that a later process loads: nothing is traced then, and nothing compiled.

PyTorch's own ahead-of-time API does the work. Of Dynamo's guards, those on a call's arguments are saved along and stay in
force, `GlobalStateGuard` stands for those on the interpreter's state, and `Fingerprint` for those on the module.
"""

import builtins
import importlib
import inspect
import logging
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import store
from .contract import Contract
from .describe import mode
from .errors import ArtifactError
from .kernels import LOADING, install
from .key import digest
from .limits import Limits
from .repeats import Repeats
from .saved_guards import compiled_function
from .traced import Traced

logger = logging.getLogger("vgen.runtime")

_reported: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a region, as far as it says which artifact serves it."""

    tag: str
    contract: Contract
    limits: Limits
    variant: Hashable
    is_padded: bool
    has_fixed_ints: bool
    graph_only: tuple[str, ...]
    is_plain: bool
    # Whether it is of a layer that shares what is compiled with others; and its index, if it asks caches for one.
    is_shared: bool
    layer: int | None


class Form:
    """A loaded artifact, for modules of the fingerprint that its key has, and for the surroundings it was loaded in."""

    def __init__(self, function: Any, core: Any, traced: Traced, *, is_complete: bool) -> None:
        self.is_complete = is_complete
        self.traced = traced
        self._run = function.fn
        self._check = function._artifacts.guard_manager.check
        # For a call that was let through, what its cache's state doesn't answer.
        self._check_rest = function.rest.check if function.rest is not None else None
        self._repeats = Repeats()
        # Grad mode, autocast, default dtype, determinism, TF32, threads: as they are now.
        self._state = torch._C._dynamo.guards.GlobalStateGuard()
        self._is_inference = torch.is_inference_mode_enabled()
        parameters = list(inspect.signature(core).parameters.values())
        self._self = parameters[0].name
        self._named = frozenset(each.name for each in parameters[1:] if each.kind is not each.VAR_KEYWORD)
        self._rest = next((each.name for each in parameters if each.kind is each.VAR_KEYWORD), None)

    def accepts(self, module: nn.Module, arguments: dict[str, Any]) -> bool:
        """Whether Dynamo's guards on the arguments hold, and the interpreter's state and the code are what they were."""
        if not self._state.check() or torch.is_inference_mode_enabled() is not self._is_inference:
            return False
        if not self.traced.holds():
            return False
        scope = arguments.copy()
        rest = {}
        if arguments.keys() != self._named:
            if not self._named <= arguments.keys():
                return False
            rest = {name: scope.pop(name) for name in arguments.keys() - self._named}
        scope[self._self] = module
        if self._rest is not None:
            scope[self._rest] = rest
        if self._check_rest is None:
            return bool(self._check(scope))
        if self._repeats.has(arguments):
            return bool(self._check_rest(scope))
        accepted = bool(self._check(scope))
        if accepted and self._repeats.note(arguments):
            # Asked again, since another thread may have changed the cache before it was noted.
            accepted = bool(self._check(scope))
            if not accepted:
                self._repeats = Repeats()
        return accepted

    def __call__(self, module: nn.Module, arguments: dict[str, Any]) -> Any:
        """Run it: what the core returns."""
        return self._run(module, **arguments)


_forms: dict[tuple[Any, str, Hashable, tuple[Path, ...]], Form | None] = {}


def loaded(core: Any, tag: str, key: str, folder: Path | None, kinds: frozenset[type]) -> Form | None:
    """The artifact of a key, loaded once for all modules of a class. See `Traced` for `kinds`, here and below."""
    folders = (folder,) if folder is not None else tuple(store.stores())
    place = (core, key, mode(), folders)
    if _forms.get(place) is None and (folder is not None or place not in _forms):
        _forms[place] = load(core, tag, key, folders, kinds)
    return _forms[place]


def load(core: Any, tag: str, key: str, folders: Sequence[Path], kinds: frozenset[type]) -> Form | None:
    """The artifact of a key from the first of some folders that has one which isn't broken."""
    for folder in folders:
        path = folder / store.file_name(tag, key)
        try:
            artifact = store.read(path)
            if artifact.header["key"] != key or digest(artifact.header["fields"]) != key:
                raise ArtifactError(f"{path} is for another key than its name says")
            return _form(artifact, core, kinds)
        except FileNotFoundError:
            continue
        except Exception as error:
            # Whatever a broken artifact raises, what it was for can still be compiled.
            report(f"{error}" if isinstance(error, ArtifactError) else f"{path} can't be loaded: {error!r}")
    return None


def kept(artifact: store.Artifact, core: Any, folder: Path, kinds: frozenset[type]) -> Form:
    """Load an artifact that was just saved into a folder, for all modules of the class."""
    form = _forms[core, artifact.header["key"], mode(), (folder,)] = _form(artifact, core, kinds)
    return form


def _form(artifact: store.Artifact, core: Any, kinds: frozenset[type]) -> Form:
    lines = artifact.header["lines"]
    # Looked at before anything is imported, which may change other modules.
    traced = Traced(lines, kinds, artifact.header["code"])
    _require_code(artifact.path, traced)
    is_imported = lines.keys() <= sys.modules.keys()
    function = _unpickle(artifact, core)
    if not is_imported:
        traced.look()
        _require_code(artifact.path, traced)
    return Form(function, core, traced, is_complete=artifact.header["complete"])


def _unpickle(artifact: store.Artifact, core: Any) -> Any:
    import torch._inductor.config as inductor_config

    from . import decode_passes, graph_passes  # noqa: F401 (what was compiled calls their operators)

    refs = {name: importlib.import_module(module) for name, module in artifact.header["refs"].items()}
    scope = vars(builtins) | core.__globals__ | refs
    libraries, place = {}, 0
    for name, size in artifact.header["libraries"].items():
        libraries[name] = artifact.payload[place : place + size]
        place += size
    install(libraries)
    with inductor_config.patch(LOADING):
        loaded = compiled_function().deserialize(artifact.payload[place:], f_globals=scope)
    _require_sources(artifact.path, loaded)
    return loaded


def _require_code(path: Path, traced: Traced) -> None:
    if traced.changed:
        raise ArtifactError(f"{path} was compiled from other code: {', '.join(traced.changed)}")


def _require_sources(path: Path, loaded: Any) -> None:
    """Raise unless every function that was traced has the source that it had then."""
    from torch._dynamo.package import _hash_sourcelines

    for each in loaded.source_info().inlined_sources:
        module = importlib.import_module(each.module)
        if _hash_sourcelines(module, each.firstlineno, each.lastlineno) != each.checksum:
            raise ArtifactError(f"{path} was compiled from another source of {each.module}, line {each.firstlineno}")


def report(message: str) -> None:
    """Log a warning, once."""
    if message not in _reported:
        _reported.add(message)
        logger.warning("%s", message)
