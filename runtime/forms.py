# SPDX-License-Identifier: Apache-2.0
"""Finds the artifact that serves a call, by the key of all that its code depends on."""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import store
from .artifact import Call, Form, loaded, report
from .building import build, into
from .describe import mode
from .errors import ArtifactError
from .fingerprint import Fingerprint, UnsuitableError
from .key import Fields, digest, fields, nearest
from .traced import kinds_of
from .weights import align_rows

POLICIES = ("off", "read", "require")
# A module tree that changes this often writes to itself while it runs: looking costs too much.
_MAX_LOOKS = 64
_MOST_OF_A_VARIANT = 8
# Those that a model takes in turns: prefill, decode and an encoder's kinds of input.
_MOST_RECENT = 8
_FEW = 5


class Forms:
    """The loaded artifacts of one instance of a region."""

    def __init__(self) -> None:
        # By mode, because a tensor's dispatch keys are others under autocast and in inference mode.
        self._fingerprints: dict[Hashable, Fingerprint] = {}
        self._recent: list[tuple[Fingerprint, Form, bool]] = []
        # What was found in the stores, or why nothing was, by the module's fingerprint and the variant. A fingerprint that was
        # taken anew asks anew, since not all that it watches is in its digest.
        self._forms: dict[tuple[Fingerprint, Hashable], list[Form] | str] = {}
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
        folder = into.get()
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
        fingerprint = self._look(module, call)
        if fingerprint is None:
            return self._unsuitable or "its modules change from call to call"
        place = (fingerprint, call.variant)
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
        changed = next((each.traced.changed for each in forms if not each.traced.holds()), None)
        if changed:
            return f"the code that it was compiled from was exchanged: {', '.join(changed)}"
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
        kinds = kinds_of(module, arguments)
        forms: list[Form] = []
        free: list[Fields] = []
        # Those for any layer, and those for this one alone.
        for layer in dict.fromkeys((None, call.layer)):
            for number in range(_MOST_OF_A_VARIANT):
                numbered = found | {"layer": layer, "number": number}
                form = loaded(core, call.tag, digest(numbered), folder, kinds)
                if form is None:
                    free.append(numbered)
                    break
                forms.append(form)
        if folder is not None and free and not any(each.accepts(module, arguments) for each in forms):
            forms.append(build(folder, module, core, call, free, arguments, kinds))
        return forms or _explain(call.tag, free[0])

    def _look(self, module: nn.Module, call: Call) -> Fingerprint | None:
        place = mode()
        found = self._fingerprints.get(place)
        if found is not None and found.holds():
            return found
        # Always looked at again: it may have become unsuitable, and may be suitable again.
        if found is not None:
            self._fingerprints.clear()
            self._recent.clear()
            self._forms.clear()
        if self._looks >= _MAX_LOOKS:
            return None
        self._looks += 1
        if call.is_padded:
            # As for what is compiled here. The layout of its weights is a part of what an artifact is for.
            align_rows(module)
        found = self._fingerprints[place] = Fingerprint(module, call.layer)
        return found


def _explain(tag: str, wanted: Fields) -> str:
    """Why no artifact has a key: what differs from the nearest one of the region."""
    lines = nearest(wanted, (each for folder in store.stores() for each in store.headers(folder, tag)))
    if lines is None:
        return "there is none of this region"
    if not lines:
        return "the one that has its key can't be loaded"
    rest = f", and {len(lines) - _FEW} more fields" if len(lines) > _FEW else ""
    return f"none has its key; the nearest one differs in {'; '.join(lines[:_FEW])}{rest}"


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
    report(f"{tag} isn't loaded from an artifact: {reason}")
