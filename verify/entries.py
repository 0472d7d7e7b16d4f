"""Which class of a generated package stands for each of its model types when the package is verified."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from transformers.models.auto import modeling_auto

# The auto maps whose classes make everything a model type has, the widest first. A type that can both fill in masked tokens
# and be a causal model is an encoder at heart: its causal class is left out (see `_generates`).
_WIDEST = (
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)


def main_entries(model_folder: str, package_module: ModuleType) -> dict[str, type[Any]]:
    """The entry class for each model type that `package_module` offers classes for, by model type.

    Args:
        model_folder: the folder in `transformers/models`, say "qwen2_5_vl".
        package_module: the generated package, or upstream's modeling module.
    """
    names = getattr(package_module, "__all__", dir(package_module))
    return choose({name: vars(package_module)[name] for name in names})


def main_entry(model_folder: str, package_module: ModuleType) -> type[Any]:
    """The entry class that makes the most of `package_module`: that of the model type that holds the others.

    Raises:
        LookupError: the package offers no class with a config.
    """
    entries = main_entries(model_folder, package_module)
    if not entries:
        raise LookupError(f"{model_folder} offers no model class with a config.")

    def rank(model_type: str) -> tuple[bool, int, str]:
        config = entries[model_type].config_class
        return (model_type.replace("-", "_") != model_folder, -len(config.sub_configs), model_type)

    return entries[min(entries, key=rank)]


def choose(offered: Mapping[str, type[Any]]) -> dict[str, type[Any]]:
    """For each model type of the configs of the classes `offered`, one class of them."""
    by_type: dict[str, dict[str, type[Any]]] = {}
    for name, cls in offered.items():
        config_class = getattr(cls, "config_class", None)
        if config_class is not None and getattr(config_class, "model_type", None):
            by_type.setdefault(config_class.model_type, {})[name] = cls
    return {model_type: classes[_best(model_type, classes)] for model_type, classes in sorted(by_type.items())}


def _best(model_type: str, classes: Mapping[str, type[Any]]) -> str:
    for mapping in _maps(model_type):
        for name in _names(mapping.get(model_type)):
            if name in classes:
                return name
    # A part that no auto class makes: its plain model, the shortest name where there are several.
    return min(classes, key=lambda name: (not name.endswith("Model"), len(name), name))


def _maps(model_type: str) -> Iterable[Mapping[str, Any]]:
    masked = model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    seq2seq = model_type in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    for name in _WIDEST:
        if name == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES" and masked and not seq2seq:
            continue
        yield vars(modeling_auto)[name]
    for name in sorted(vars(modeling_auto)):
        if name.endswith("_MAPPING_NAMES") and name.startswith("MODEL_FOR_") and name not in _WIDEST:
            yield vars(modeling_auto)[name]


def _names(value: str | Iterable[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
