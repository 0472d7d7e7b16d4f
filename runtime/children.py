# SPDX-License-Identifier: Apache-2.0
"""Makes the child models that upstream makes with `AutoModel.from_config`: generated ones, where they are built."""

import importlib
import logging
import os
from types import ModuleType
from typing import Any

from .errors import UpstreamChangedError

logger = logging.getLogger("vgen.runtime")

_logged: set[tuple[str, str]] = set()


def child_from_config(auto_class: Any, config: Any, *, package: str, **kwargs: Any) -> Any:
    """What `auto_class.from_config(config, **kwargs)` makes, of the generated class where there is one.

    The auto class's own mapping says which upstream class it would make. The generated one has the same name, in the
    package that is named after the upstream class's model folder: beside `package`, else where `vgen.load` looks. Where
    that isn't built, it is upstream's class, and a log line says so.

    Args:
        auto_class: A Transformers auto class, `AutoModel` for example.
        config: The child's config.
        package: The generated package that asks: its `__package__`.
        **kwargs: For `from_config`.
    """
    remote = auto_class.__name__ in (getattr(config, "auto_map", None) or {})
    if type(config) not in auto_class._model_mapping or (remote and kwargs.get("trust_remote_code")):
        # A class of the user's or the hub's, or an error of upstream's.
        return auto_class.from_config(config, **kwargs)
    from transformers.models.auto.auto_factory import _get_model_class

    upstream: type = _get_model_class(config, auto_class._model_mapping)
    generated = _generated(upstream, package)
    if generated is None:
        return auto_class.from_config(config, **kwargs)
    return _redirected(auto_class, {type(config): generated}).from_config(config, **kwargs)


def child_from_pretrained(auto_class: Any, path: Any, *args: Any, package: str, **kwargs: Any) -> Any:
    """What `auto_class.from_pretrained(path, *args, **kwargs)` loads, of the generated class where there is one.

    Args:
        auto_class: A Transformers auto class.
        path: A name on the hub or a folder.
        *args: For `from_pretrained`.
        package: The generated package that asks: its `__package__`.
        **kwargs: For `from_pretrained`.
    """
    generated = _GeneratedModels(auto_class._model_mapping, package)
    return _redirected(auto_class, generated).from_pretrained(path, *args, **kwargs)


def child_from_backbone(load_backbone: Any, config: Any, *, package: str) -> Any:
    """What `load_backbone(config)` makes, of the generated class where there is one.

    Args:
        load_backbone: Transformers' function of that name.
        config: The config of the model around the backbone, or the backbone's own.
        package: The generated package that asks: its `__package__`.
    """
    from transformers import AutoBackbone

    own = getattr(config, "backbone_config", None)
    own = config if own is None else own
    if getattr(config, "use_pretrained_backbone", None) or type(own) not in AutoBackbone._model_mapping:
        return load_backbone(config)
    return child_from_config(AutoBackbone, own, package=package)


def _redirected(auto_class: Any, mapping: Any) -> Any:
    """The same auto class with generated classes in its mapping, so that all else that it does (dtype, quantization, text
    sub-configs) is done by upstream's own code. It keeps its name, by which configs refer to remote code."""
    return type(auto_class.__name__, (auto_class,), {"_model_mapping": mapping})


class _GeneratedModels:
    """An auto class's mapping, with the generated classes in place of upstream's where they are built."""

    def __init__(self, upstream: Any, package: str) -> None:
        self.upstream = upstream
        self.package = package

    def __contains__(self, config_class: type) -> bool:
        return config_class in self.upstream

    def __iter__(self) -> Any:
        return iter(self.upstream)

    def __getitem__(self, config_class: type) -> Any:
        found = self.upstream[config_class]
        if isinstance(found, (list, tuple)):
            return tuple(_generated(each, self.package) or each for each in found)
        return _generated(found, self.package) or found

    def register(self, *args: Any, **kwargs: Any) -> None:
        """For `from_pretrained` of remote code, which Transformers remembers for later calls."""
        self.upstream.register(*args, **kwargs)


def child_class(upstream: type, *, package: str) -> Any:
    """The generated class of a Transformers model where there is one, else `upstream` itself, and a log line says so.

    For models outside of Transformers, which make their children by calling the classes: `LlamaForCausalLM(config)`.

    Args:
        upstream: The class that upstream calls.
        package: The generated package that asks: its `__package__`.
    """
    return _generated(upstream, package) or upstream


def packages(generated: str | None = None) -> list[tuple[str, str]]:
    """The packages that hold generated packages, in the order in which they are looked at, each with who names it."""
    runtime = __package__ or "vgen.runtime"
    default = "vgen.generated" if runtime == "vgen.runtime" else runtime.rpartition(".")[0]
    candidates = [
        ("generated=", generated),
        ("VGEN_GENERATED", os.environ.get("VGEN_GENERATED")),
        ("default", default),
    ]
    return [(source, package) for source, package in candidates if package]


def model_folder(upstream: type) -> str | None:
    """The folder under transformers/models that defines a class, or None if it is from elsewhere."""
    parts = upstream.__module__.split(".")
    return parts[2] if parts[:2] == ["transformers", "models"] and len(parts) > 3 else None


def import_package(name: str) -> ModuleType | None:
    """Import a package; None if there is none of this name. An error inside of it propagates."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise


def _generated(upstream: type, package: str) -> type | None:
    folder = model_folder(upstream)
    if folder is None:
        return None
    beside = package.rpartition(".")[0]
    found = []
    for parent in dict.fromkeys([beside, *(parent for _, parent in packages())]):
        name = f"{parent}.{folder}" if parent else folder
        try:
            module = import_package(name)
        except UpstreamChangedError:
            if parent == beside:
                raise
            # Nobody asked for this package: where it doesn't fit the installed Transformers, it isn't there.
            found.append(f"{name} was built from another Transformers")
            continue
        generated = getattr(module, upstream.__name__, None)
        if isinstance(generated, type) and issubclass(generated, upstream):
            return generated
        found.append(f"{name} isn't built" if module is None else f"{name} doesn't have it")
    if (package, upstream.__name__) not in _logged:
        _logged.add((package, upstream.__name__))
        logger.warning(
            "%s runs Transformers' own %s: %s. `vgen build %s` builds it.",
            package,
            upstream.__name__,
            ", ".join(found),
            folder,
        )
    return None
