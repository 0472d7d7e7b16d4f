"""What a model's forward and config say about its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A model, the parameters of its forward, and its configs: its own first, then the parts'."""

    model: PreTrainedModel
    parameters: dict[str, inspect.Parameter]
    passed: frozenset[str]
    """Further parameters, of the base model's forward, to which keyword arguments that the forward doesn't name go on."""
    configs: tuple[PreTrainedConfig, ...]

    @property
    def config(self) -> PreTrainedConfig:
        return self.configs[0]

    def takes(self, *names: str) -> bool:
        """Whether the forward has any parameter of these names, or passes it on to one."""
        return any(name in self.parameters or name in self.passed for name in names)

    def find(self, *names: str, default: Any = None, within: str = "") -> Any:
        """The first of these fields that any config has with a value, the model's own config first.

        `within` narrows it to sub-configs in whose field name it occurs, if there are any.
        """
        configs = [config for path, config in walk_configs(self.config) if within in path] or list(self.configs)
        for name in names:
            for config in configs:
                try:
                    value = getattr(config, name, None)
                except ValueError:  # it differs from layer to layer
                    value = vars(config).get(name)
                if value is not None:
                    return value
        return default

    def special_ids(self) -> set[int]:
        """All token ids that any config names."""
        found: set[int] = set()
        for config in self.configs:
            for name, value in vars(config).items():
                if "token" in name or name.endswith(("_index", "_id")):
                    for each in value if isinstance(value, list | tuple) else [value]:
                        if isinstance(each, int) and not isinstance(each, bool):
                            found.add(each)
        return found

    def vocabulary(self) -> int:
        """Rows of the input embedding, or the config's vocabulary."""
        embedding = input_embedding(self.model)
        size = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None
        text = self.find("vocab_size", within="text") or self.find("vocab_size", "num_embeddings", default=64)
        return min(each for each in (size, text) if isinstance(each, int))


def read(model: PreTrainedModel) -> Facts:
    parameters = _named(model)
    base = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    passes = any(each.kind is each.VAR_KEYWORD for each in inspect.signature(type(model).forward).parameters.values())
    passed = frozenset(_named(base)) if passes and isinstance(base, PreTrainedModel) else frozenset()
    configs = tuple(config for _, config in walk_configs(model.config))
    return Facts(model=model, parameters=parameters, passed=passed - set(parameters), configs=configs)


def _named(model: PreTrainedModel) -> dict[str, inspect.Parameter]:
    """The parameters of a model's forward that have a name of their own."""
    return {
        name: each
        for name, each in inspect.signature(type(model).forward).parameters.items()
        if name != "self" and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }


def input_embedding(model: PreTrainedModel) -> nn.Module | None:
    try:
        found: nn.Module | None = model.get_input_embeddings()
        return found
    except (NotImplementedError, AttributeError):
        return None


def walk_configs(config: PreTrainedConfig, path: str = "") -> Iterator[tuple[str, PreTrainedConfig]]:
    """A config and those inside it, by their paths from it."""
    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from walk_configs(value, f"{path}.{name}")
