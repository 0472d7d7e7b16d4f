# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that bring their own code: finds the generated package that was built from it. The code itself is never run."""

import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .children import import_package, packages
from .digest import bytes_digest
from .errors import ArchitectureError, LockError, ModelNotBuiltError, UpstreamChangedError
from .lock import COPIES, LOCK_NAME, Lock, read_lock

_CONFIG = "config.json"
_CONFIG_CLASS = "AutoConfig"
# The same order as the build's.
_MODEL_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
_INITIAL = "__init__.py"
# Where files of a checkpoint are looked for; what else `from_pretrained` is given is for the model.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCode:
    """The package for a checkpoint's code. `references` are the checkpoint's: auto class to `module.Class`."""

    package: str
    references: Mapping[str, str]
    architectures: tuple[str, ...]

    def load(self, name_or_path: str | os.PathLike[str], kwargs: dict[str, Any]) -> Any:
        """`from_pretrained` of the model class, with the config class from the package's copy."""
        model_class = self._model_class(name_or_path)
        kwargs = {name: value for name, value in kwargs.items() if name not in ("trust_remote_code", "code_revision")}
        config = kwargs.get("config")
        if config is None and _CONFIG_CLASS in self.references:
            module, _, name = self.references[_CONFIG_CLASS].rpartition(".")
            config_class = getattr(importlib.import_module(f"{self.package}.{COPIES}.{module}"), name)
            # These aren't the config's to take, as Transformers' auto classes have it: the model is given them.
            kept: dict[str, Any] = {
                each: kwargs.pop(each) for each in ("dtype", "torch_dtype", "quantization_config") if each in kwargs
            }
            hub: dict[str, Any] = {each: kwargs[each] for each in _HUB_ARGUMENTS if each in kwargs}
            config, kwargs = config_class.from_pretrained(name_or_path, return_unused_kwargs=True, **kwargs)
            # Its files are copied along when the model is saved, so they are in no other repository then.
            config.auto_map = dict(self.references)
            kwargs = {**kwargs, **hub, **kept, "config": config}
        return model_class.from_pretrained(name_or_path, **kwargs)

    def _model_class(self, name_or_path: str | os.PathLike[str]) -> Any:
        module = importlib.import_module(self.package)
        named = [each for each in _MODEL_CLASSES if each in self.references]
        named += sorted(each for each in self.references if each not in named and each != _CONFIG_CLASS)
        names = (*self.architectures, *(self.references[each].rpartition(".")[2] for each in named))
        for name in names:
            found = getattr(module, name, None)
            if isinstance(found, type):
                return found
        raise ModelNotBuiltError(
            f"{self.package} was built from the code of {name_or_path}, but has none of its models "
            f"({', '.join(dict.fromkeys(names))}): nothing in them is compiled. Load it with Transformers' own from_pretrained."
        )


def find_own_code(
    name_or_path: str | os.PathLike[str], kwargs: Mapping[str, Any], generated: str | None
) -> OwnCode | None:
    """The package that was built from the code that a checkpoint brings. None for one that brings none; and, where no package
    was built from it, for one whose model type Transformers has itself.

    Raises:
        ArchitectureError: Its code is in another repository.
        ModelNotBuiltError: No package was built from a file of those names.
        UpstreamChangedError: One was, but from a file of other content.
    """
    hub = {each: kwargs[each] for each in _HUB_ARGUMENTS if each in kwargs}
    data = _config(name_or_path, hub)
    mapping = data.get("auto_map")
    references = {
        auto: reference
        for auto, reference in (mapping.items() if isinstance(mapping, dict) else ())
        if isinstance(reference, str) and (auto == _CONFIG_CLASS or auto.startswith("AutoModel"))
    }
    if not any(auto != _CONFIG_CLASS for auto in references):
        return None
    architectures = tuple(each for each in data.get("architectures") or () if isinstance(each, str))
    modules = sorted({f"{reference.rpartition('.')[0]}.py" for reference in references.values()})
    is_native = _is_native(data.get("model_type"))
    other = next((reference for reference in references.values() if "--" in reference), None)
    if other is not None:
        if is_native:
            return None
        raise ArchitectureError(
            f"The code of {name_or_path} is in another repository: its config names {other}. Download that repository, build a "
            f"package from the modeling file in it, and call from_pretrained of the class there."
        )
    looked, differing = [], []
    for source, parent in packages(generated):
        looked.append(f"{parent} ({source})")
        for package, lock in _copied(parent):
            if not set(modules) <= set(lock.copies):
                continue
            different = _different(lock, name_or_path, hub)
            if not different:
                return OwnCode(package=package, references=references, architectures=architectures)
            differing.append((package, different))
    if differing:
        told = "; ".join(f"{package} from another {', '.join(names)}" for package, names in differing)
        raise UpstreamChangedError(
            f"The code that {name_or_path} brings isn't what was reviewed: {told}. `vgen diff {name_or_path}` with the --out of "
            f"that package shows the difference, `vgen build {name_or_path}` builds from it."
        )
    if is_native:
        return None
    raise ModelNotBuiltError(
        f"{name_or_path} brings its own code ({', '.join(modules)}), and no package was built from it. Looked in "
        f"{', '.join(looked)}. `vgen build {name_or_path}`, of a folder that holds the checkpoint, builds one into ./generated; then "
        f'pass generated="generated".'
    )


def copy_code(model: Any, folder: str | os.PathLike[str]) -> None:
    """Put the files that a model's config refers to beside its weights: the copies of the package that it comes from."""
    if not getattr(model.config, "auto_map", None):
        return
    for each in type(model).__mro__:
        package, found, _ = each.__module__.partition(f".{COPIES}.")
        if not found:
            continue
        where = Path(importlib.import_module(package).__file__ or "").parent
        for name in read_lock(where / LOCK_NAME).copies:
            if name != _INITIAL:
                target = Path(folder) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(where / COPIES / name, target)
        return


def _is_native(model_type: object) -> bool:
    from transformers import CONFIG_MAPPING

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def _file(name_or_path: str | os.PathLike[str], name: str, hub: Mapping[str, Any]) -> Path | None:
    from transformers.utils import cached_file

    found = cached_file(
        name_or_path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return Path(found) if found is not None else None


def _config(name_or_path: str | os.PathLike[str], hub: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says; nothing where there is none or it is broken: Transformers' own loading says so better."""
    try:
        path = _file(name_or_path, _CONFIG, hub)
        data = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _copied(parent: str) -> Iterator[tuple[str, Lock]]:
    """The packages in `parent` that hold copies of a model's files, by name."""
    module = import_package(parent)
    for place in getattr(module, "__path__", ()):
        for path in sorted(Path(place).glob(f"*/{LOCK_NAME}")):
            try:
                lock = read_lock(path)
            except LockError:
                continue  # It says so itself when it is imported.
            if lock.copies:
                yield f"{parent}.{path.parent.name}", lock


def _different(lock: Lock, name_or_path: str | os.PathLike[str], hub: Mapping[str, Any]) -> list[str]:
    """The files that the checkpoint has otherwise, or not at all."""
    different = []
    for name, expected in sorted(lock.copies.items()):
        path = _file(name_or_path, name, hub)
        if path is None and name == _INITIAL:
            continue
        if path is None or bytes_digest(path.read_bytes()) != expected:
            different.append(name)
    return different
