# SPDX-License-Identifier: Apache-2.0
"""Compiled forms that were saved, and that a later process loads: nothing is traced then, and nothing compiled.

PyTorch's own ahead-of-time API does the work. Of Dynamo's guards, those on a call's arguments are saved along and stay in
force, `GlobalStateGuard` stands for those on the interpreter's state, and `Fingerprint` for those on the module.
"""

import builtins
import importlib
import inspect
import logging
import os
import time
import types
from collections.abc import Hashable, Iterator, Sequence
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
from .caches import key_value_states
from .contract import Contract
from .describe import mode
from .errors import ArtifactError
from .fingerprint import Fingerprint, UnsuitableError
from .kernels import LOADING, install, recorded
from .key import Fields, digest, fields, nearest
from .limits import Limits
from .repeats import Repeats
from .saved_guards import compiled_function, is_kept, is_of_argument
from .weights import align_rows

logger = logging.getLogger("vgen.runtime")

POLICIES = ("off", "read", "require")
# A module tree that changes this often writes to itself while it runs: looking costs too much.
_MAX_LOOKS = 64
_MOST_OF_A_VARIANT = 8
# Those that a model takes in turns: prefill, decode and an encoder's kinds of input.
_MOST_RECENT = 8
_FEW = 5
_building: ContextVar[Path | None] = ContextVar("vgen_building", default=None)
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


class Form:
    """A loaded artifact, for modules of the fingerprint that its key has, and for the surroundings it was loaded in."""

    def __init__(self, function: Any, core: Any, *, is_complete: bool) -> None:
        self.is_complete = is_complete
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
        """Whether Dynamo's guards on the arguments hold, and the interpreter's state is what it was."""
        if not self._state.check() or torch.is_inference_mode_enabled() is not self._is_inference:
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


class Forms:
    """The loaded artifacts of one instance of a region."""

    def __init__(self) -> None:
        # By mode, because a tensor's dispatch keys are others under autocast and in inference mode.
        self._fingerprints: dict[Hashable, Fingerprint] = {}
        self._recent: list[tuple[Fingerprint, Form, bool]] = []
        # What was found in the stores, or why nothing was, by the module's fingerprint and the variant.
        self._forms: dict[tuple[str, Hashable], list[Form] | str] = {}
        self._looks = 0
        self._unsuitable: str | None = None

    def recall(self, module: nn.Module, arguments: dict[str, Any], *, is_plain: bool) -> Form | None:
        """The artifact that served a call like this one, found without describing the call, but for whether its positions are
        plain, which no guard asks."""
        for fingerprint, form, is_for_plain in self._recent:
            if is_for_plain is is_plain and form.accepts(module, arguments):
                return form if fingerprint.holds() else None
        return None

    def forget_recent(self) -> None:
        """Describe the next call before a form serves it: something changed that only its variant says."""
        self._recent.clear()

    def find(self, module: nn.Module, call: Call, arguments: dict[str, Any]) -> Form | None:
        """The artifact that serves a call; None where Dynamo is to compile it.

        Raises:
            ArtifactError: There is none, and `VGEN_ARTIFACTS=require`, or that variable has an unknown value.
        """
        folder = _building.get()
        policy = _policy()
        if policy == "off" and folder is None:
            return None
        if folder is None and policy == "read" and not _has_any(call.tag):
            return None
        try:
            found = self._find(module, call, arguments, folder)
        except UnsuitableError as error:
            self._unsuitable = found = str(error)
        except OSError as error:
            found = f"it can't be saved: {error}"
        if isinstance(found, str):
            _missing(call.tag, policy, found)
            return None
        return found

    def _find(self, module: nn.Module, call: Call, arguments: dict[str, Any], folder: Path | None) -> Form | str:
        if torch.is_grad_enabled():
            return "artifacts are for calls without gradients"
        fingerprint = self._look(module, is_padded=call.is_padded)
        if fingerprint is None:
            return self._unsuitable or "its modules change from call to call"
        place = (fingerprint.digest, call.variant)
        forms = self._forms.get(place) if folder is None else None
        if forms is None:
            forms = self._forms[place] = self._load(module, call, fingerprint, arguments, folder)
        if isinstance(forms, str):
            return forms
        for form in forms:
            if form.accepts(module, arguments):
                if form.is_complete:
                    self._recent = [(fingerprint, form, call.is_plain), *self._recent[: _MOST_RECENT - 1]]
                return form
        return "the sizes of its arguments aren't related as in the artifacts of its key"

    def _load(
        self,
        module: nn.Module,
        call: Call,
        fingerprint: Fingerprint,
        arguments: dict[str, Any],
        folder: Path | None,
    ) -> list[Form] | str:
        """The artifacts of a variant, or why there is none.

        Calls of one variant may still differ in how the sizes of their arguments relate: each has an artifact then.
        """
        found = fields(
            module,
            tag=call.tag,
            contract=call.contract,
            options=module.vgen_options,  # type: ignore[arg-type]  # a module's attribute, to mypy
            variant=call.variant,
            fingerprint=fingerprint,
            is_padded=call.is_padded,
        )
        core = type(module).core  # type: ignore[attr-defined]  # that of `Compiled`
        forms: list[Form] = []
        for number in range(_MOST_OF_A_VARIANT):
            numbered = found | {"number": number}
            key = digest(numbered)
            form = _loaded(core, call.tag, key, folder)
            if form is None and folder is not None:
                if any(each.accepts(module, arguments) for each in forms):
                    break
                form = _build(folder, module, core, call, numbered, key, arguments)
            if form is None:
                break
            forms.append(form)
        return forms or _explain(call.tag, found | {"number": 0})

    def _look(self, module: nn.Module, *, is_padded: bool) -> Fingerprint | None:
        place = mode()
        found = self._fingerprints.get(place)
        if found is not None and found.holds():
            return found
        # Always looked at again: it may have become unsuitable, and may be suitable again.
        if found is not None:
            self._fingerprints.clear()
            self._recent.clear()
        if self._looks >= _MAX_LOOKS:
            return None
        self._looks += 1
        if is_padded:
            # As for what is compiled here. The layout of its weights is a part of what an artifact is for.
            align_rows(module)
        found = self._fingerprints[place] = Fingerprint(module)
        return found


_forms: dict[tuple[Any, str, Hashable, tuple[Path, ...]], Form | None] = {}


def _loaded(core: Any, tag: str, key: str, folder: Path | None) -> Form | None:
    """The artifact of a key, loaded once for all modules of a class."""
    folders = (folder,) if folder is not None else tuple(store.stores())
    place = (core, key, mode(), folders)
    if _forms.get(place) is None and (folder is not None or place not in _forms):
        _forms[place] = _load(core, tag, key, folders)
    return _forms[place]


def _load(core: Any, tag: str, key: str, folders: Sequence[Path]) -> Form | None:
    for folder in folders:
        path = folder / store.file_name(tag, key)
        try:
            artifact = store.read(path)
            if artifact.header["key"] != key or digest(artifact.header["fields"]) != key:
                raise ArtifactError(f"{path} is for another key than its name says")
            return _form(artifact, core)
        except FileNotFoundError:
            continue
        except Exception as error:
            # Whatever a broken artifact raises, what it was for can still be compiled.
            _report(f"{error}" if isinstance(error, ArtifactError) else f"{path} can't be loaded: {error!r}")
    return None


def _form(artifact: store.Artifact, core: Any) -> Form:
    return Form(_unpickle(artifact, core), core, is_complete=artifact.header["complete"])


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Within it, a region that has no artifact for a call builds one into a folder, and runs it."""
    token = _building.set(folder)
    try:
        yield
    finally:
        _building.reset(token)


def _build(
    folder: Path, module: nn.Module, core: Any, call: Call, found: Fields, key: str, arguments: dict[str, Any]
) -> Form:
    """Compile a call ahead of time, save what comes of it, and load that.

    Raises:
        UnsuitableError: It can't be compiled or saved.
        OSError: The folder can't be written to, or is full. Nothing is left there then.
    """
    from filelock import FileLock

    from .compiler import ahead_of_time
    from .light import lighten

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    path = folder / store.file_name(call.tag, key)
    # Whoever comes second finds the file; a lock of a process that was killed is the system's to release.
    with FileLock(folder / f".{path.name}.lock"):
        form = _load(core, call.tag, key, (folder,))
        if form is not None:
            return form
        begun = time.monotonic()
        dropped: list[str] = []

        def keeps(entry: Any) -> bool:
            kept = is_kept(entry)
            if not kept and is_of_argument(entry.name):
                dropped.append(entry.name)
            return kept

        try:
            with _marked_static(call, arguments), recorded() as libraries:
                compiled = ahead_of_time(
                    core,
                    module,
                    arguments,
                    options=module.vgen_options,  # type: ignore[arg-type]
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
            lighten(compiled)
            payload = type(compiled).serialize(compiled).serialized_data
        except Exception as error:
            raise UnsuitableError(f"it can't be compiled ahead of time ({type(error).__name__}: {error})") from error
        refs = {}
        for name in sorted(compiled._artifacts.runtime_env.external_refs):
            value = compiled.fn.__globals__.get(name)
            if isinstance(value, types.ModuleType):
                refs[name] = value.__name__
        header = {
            "key": key,
            "tag": call.tag,
            "fields": found,
            "refs": refs,
            # Whether the saved guards alone say which calls it serves.
            "complete": not dropped,
            "seconds": round(time.monotonic() - begun, 1),
            "libraries": {name: len(data) for name, data in libraries.items()},
        }
        artifact = store.read(store.write(folder, header, b"".join([*libraries.values(), payload])))
        form = _forms[core, key, mode(), (folder,)] = _form(artifact, core)
        return form


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


def _explain(tag: str, wanted: Fields) -> str:
    """Why no artifact has a key: what differs from the nearest one of the region."""
    lines = nearest(wanted, (each for folder in store.stores() for each in store.headers(folder, tag)))
    if lines is None:
        return "there is none of this region"
    if not lines:
        return "the one that has its key can't be loaded"
    rest = f", and {len(lines) - _FEW} more fields" if len(lines) > _FEW else ""
    return f"none has its key; the nearest one differs in {'; '.join(lines[:_FEW])}{rest}"


def _unpickle(artifact: store.Artifact, core: Any) -> Any:
    import torch._inductor.config as inductor_config

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


def _require_sources(path: Path, loaded: Any) -> None:
    """Raise unless every function that was traced has the source that it had then."""
    from torch._dynamo.package import _hash_sourcelines

    for each in loaded.source_info().inlined_sources:
        module = importlib.import_module(each.module)
        if _hash_sourcelines(module, each.firstlineno, each.lastlineno) != each.checksum:
            raise ArtifactError(f"{path} was compiled from another source of {each.module}, line {each.firstlineno}")


def _policy() -> str:
    policy = os.environ.get("VGEN_ARTIFACTS", "read")
    if policy not in POLICIES:
        raise ArtifactError(f"VGEN_ARTIFACTS is {policy!r}: it must be off, read or require.")
    return policy


_present: dict[tuple[str, str], bool] = {}


def _has_any(tag: str) -> bool:
    """Whether a store has an artifact of a region. Looked up once for each set of stores."""
    place = (tag, f"{os.environ.get('VGEN_STORE')}:{os.environ.get('XDG_CACHE_HOME')}")
    found = _present.get(place)
    if found is None:
        found = _present[place] = any(store.paths(folder, tag) for folder in store.stores())
    return found


def _missing(tag: str, policy: str, reason: str) -> None:
    if policy == "require":
        raise ArtifactError(
            f"{tag} has no artifact for this call: {reason}. VGEN_ARTIFACTS=require asks for one; `vgen compile` builds "
            f"them, and `vgen artifacts list` shows which there are."
        )
    _report(f"{tag} isn't loaded from an artifact: {reason}")


def _report(message: str) -> None:
    if message not in _reported:
        _reported.add(message)
        logger.warning("%s", message)
