"""Which model a configuration attribute leads to: `config.vision_config` → its default class → `AutoModel`'s class for it."""

from __future__ import annotations

import ast

from ..facts import Ref
from .classes import Classes


def is_auto(name: str) -> bool:
    """Whether a class is one of Transformers' auto classes for models."""
    return name.startswith(("AutoModel", "AutoBackbone"))


def auto_target(classes: Classes, owner: Ref, auto_class: str, config: str | None) -> Ref | None:
    """The class that `<auto_class>.from_config(<config>)` makes in a method of `owner` when the configuration is the default.

    `config` is the argument's source text: `config` is the owner's own configuration, `config.x` a part of it. None where
    the source names no default.
    """
    own = classes.config_class(owner)
    if own is None or config is None:
        return None
    names = config.removeprefix("self.").split(".")
    if names[0] != "config":
        return None
    model_type: str | None = classes.text_attribute(own, "model_type")
    for name in names[1:]:
        model_type, own = _sub_config(classes, own, name) if own is not None else (None, None)
    return _auto_model(classes, auto_class, model_type)


def _sub_config(classes: Classes, config: Ref, name: str) -> tuple[str | None, Ref | None]:
    """The default model type and configuration class of one sub-configuration."""
    for table in ("sub_configs_defaults", "sub_configs"):
        value = classes.attribute(config, table)
        for key, entry in zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ():
            if not (isinstance(key, ast.Constant) and key.value == name):
                continue
            if isinstance(entry, ast.Name):
                found = classes.resolve_class(config.file, entry.id)
                model_type = classes.text_attribute(found, "model_type") if found is not None else None
                if model_type is not None:
                    return model_type, found
            if isinstance(entry, ast.Call):
                for keyword in entry.keywords:
                    if keyword.arg == "model_type" and isinstance(keyword.value, ast.Constant):
                        return str(keyword.value.value), None
    return _assigned_default(classes, config, name), None


def _assigned_default(classes: Classes, config: Ref, name: str) -> str | None:
    """The model type that the configuration's methods give a part: `self.text_config = CONFIG_MAPPING["qwen2"]()`, or
    `self.text_config["model_type"] = self.text_config.get("model_type", "qwen2")`."""
    node = classes.node(config)
    for inner in ast.walk(node) if node is not None else ():
        match inner:
            case ast.Assign(
                targets=[ast.Attribute(attr=attribute)],
                value=ast.Call(func=ast.Subscript(slice=ast.Constant(value=str(default)))),
            ) if attribute == name:
                return default
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Attribute(attr=attribute), slice=ast.Constant(value="model_type"))],
                value=ast.Call(func=ast.Attribute(attr="get"), args=[_, ast.Constant(value=str(default))]),
            ) if attribute == name:
                return default
    return None


def _auto_model(classes: Classes, auto_class: str, model_type: str | None) -> Ref | None:
    source = classes.source
    models = source.auto_models(auto_class)
    if model_type is None or model_type not in models:
        return None
    folder = source.folders.get(model_type, model_type.replace("-", "_"))
    file = source.find_file(f"transformers/models/{folder}/modeling_{folder}.py")
    return source.resolve(models[model_type], file) if file is not None else None
