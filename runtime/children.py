# SPDX-License-Identifier: Apache-2.0
"""Makes the child models that upstream makes with `AutoModel.from_config`: generated ones, where they are built."""

import importlib
import logging
from types import ModuleType
from typing import Any

logger = logging.getLogger("vgen.runtime")

_logged: set[tuple[str, str]] = set()


def child_from_config(auto_class: Any, config: Any, *, package: str, **kwargs: Any) -> Any:
    """What `auto_class.from_config(config, **kwargs)` makes, of the generated class where there is one.

    The auto class's own mapping says which upstream class it would make. The generated one has the same name, in the
    package beside `package` that is named after the upstream class's model folder. Where that isn't built, it is
    upstream's class, and a log line says so.

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
    # The same auto class with the generated class in its mapping, so that all else that from_config does (dtype,
    # quantization, text sub-configs) is done by upstream's own code. It keeps its name, by which configs refer to
    # remote code.
    redirected: Any = type(auto_class.__name__, (auto_class,), {"_model_mapping": {type(config): generated}})
    return redirected.from_config(config, **kwargs)


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
    name = f"{beside}.{folder}" if beside else folder
    module = import_package(name)
    generated = getattr(module, upstream.__name__, None)
    if isinstance(generated, type) and issubclass(generated, upstream):
        return generated
    if (package, upstream.__name__) not in _logged:
        _logged.add((package, upstream.__name__))
        logger.warning(
            "%s runs Transformers' own %s: %s. `vgen build %s` builds it.",
            package,
            upstream.__name__,
            f"{name} isn't built" if module is None else f"{name} doesn't have it",
            folder,
        )
    return None
