# SPDX-License-Identifier: Apache-2.0
"""Loads a checkpoint into the generated class for its architecture."""

import os
from typing import Any

from .children import import_package, model_folder, packages
from .errors import ArchitectureError, ModelNotBuiltError
from .own_code import find_own_code
from .settings import Backend, options

# What AutoConfig needs to find and read a config; the rest of the arguments is for the model.
_CONFIG_ARGUMENTS = (
    "cache_dir",
    "code_revision",
    "force_download",
    "gguf_file",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


def load(
    name_or_path: str | os.PathLike[str],
    *,
    compile: bool = True,
    compile_mm_encoder: bool = False,
    backend: Backend = "inductor",
    mode: str | None = None,
    cuda_graphs: bool = True,
    generated: str | None = None,
    **from_pretrained_kwargs: Any,
) -> Any:
    """Load a checkpoint as a compiled model: `from_pretrained` of the generated class for its architecture.

    Calls that an artifact of `vgen compile` serves aren't compiled then: see README.

    Of a checkpoint that brings its own code, nothing is run: the package that was built from that very code is looked for.

    Args:
        name_or_path: A hub name or a folder, as for `from_pretrained`.
        compile: See `Options`.
        compile_mm_encoder: See `Options`.
        backend: See `Options`.
        mode: See `Options`.
        cuda_graphs: See `Options`.
        generated: The package that holds the generated packages. Looked at first; then the one that the environment
            variable `VGEN_GENERATED` names; then `vgen.generated`, or the package that holds a standalone copy of the
            runtime.
        **from_pretrained_kwargs: For `from_pretrained`: dtype, device_map, gguf_file, quantization_config...

    Returns:
        The model, in eval mode, as `from_pretrained` returns it.

    Raises:
        ArchitectureError: The config names no Transformers class.
        ModelNotBuiltError: No package has that class; says where it looked and the command that builds it.
        UpstreamChangedError: The package was built from another Transformers, or from other code than the checkpoint brings.
        OptionsError: An option has an unknown value.
        EncoderNotFoundError: `compile_mm_encoder=True`, and the model has no compiled encoder.
    """
    with options(
        compile=compile, compile_mm_encoder=compile_mm_encoder, backend=backend, mode=mode, cuda_graphs=cuda_graphs
    ):
        own = find_own_code(name_or_path, from_pretrained_kwargs, generated)
        if own is not None:
            return own.load(name_or_path, from_pretrained_kwargs)
        config, rest = _config(name_or_path, from_pretrained_kwargs)
        model_class = _generated_class(_upstream_class(config, name_or_path), generated)
        if rest is not None and type(config) is model_class.config_class:
            return model_class.from_pretrained(name_or_path, config=config, **rest)
        return model_class.from_pretrained(name_or_path, **from_pretrained_kwargs)


def _config(name_or_path: str | os.PathLike[str], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any] | None]:
    """The checkpoint's config. Where that took long to read, also what is left of the arguments when the model is handed it."""
    from transformers import AutoConfig, PreTrainedConfig

    config = kwargs.get("config")
    if isinstance(config, PreTrainedConfig):
        return config, None
    passed = {name: kwargs[name] for name in _CONFIG_ARGUMENTS if name in kwargs}
    if config is not None or kwargs.get("gguf_file") is None:
        return AutoConfig.from_pretrained(name_or_path if config is None else config, **passed), None
    # A GGUF file's config stands in the metadata, with the whole vocabulary: it is read once. Arguments are taken for the config
    # as Transformers' auto classes do it, who keep these for the model.
    kept = {name: kwargs[name] for name in ("dtype", "torch_dtype", "quantization_config") if name in kwargs}
    others = {name: value for name, value in kwargs.items() if name not in kept}
    config, rest = AutoConfig.from_pretrained(name_or_path, return_unused_kwargs=True, **others)
    return config, {**rest, **passed, **kept}


def _upstream_class(config: Any, name_or_path: str | os.PathLike[str]) -> type:
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.auto_factory import _get_model_class

    architectures = list(getattr(config, "architectures", None) or ())
    for name in architectures:
        upstream = getattr(transformers, name, None)
        if isinstance(upstream, type):
            return upstream
    if not architectures:
        # Some configs are those of an image-text model and of its text model: the larger one is meant.
        for auto_class in (AutoModelForImageTextToText, AutoModelForCausalLM):
            if type(config) in auto_class._model_mapping:
                found: type = _get_model_class(config, auto_class._model_mapping)
                return found
        raise ArchitectureError(
            f"The config of {name_or_path} ({type(config).__name__}) has no `architectures`, and Transformers has no "
            f"causal language model or image-text-to-text model for it. Call from_pretrained of the generated class "
            f"that you mean."
        )
    raise ArchitectureError(
        f"The config of {name_or_path} names the architecture {', '.join(architectures)}, which the installed "
        f"Transformers {transformers.__version__} doesn't have. Only models whose code is part of Transformers can be "
        f"built."
    )


def _generated_class(upstream: type, generated: str | None) -> Any:
    folder = model_folder(upstream)
    if folder is None:
        raise ArchitectureError(
            f"{upstream.__module__}.{upstream.__qualname__} isn't one of Transformers' models, so there is no "
            f"generated class for it. Load it with Transformers' own from_pretrained."
        )
    looked = []
    for source, package in packages(generated):
        name = f"{package}.{folder}"
        module = import_package(name)
        found = getattr(module, upstream.__name__, None)
        # A model that isn't Transformers' may have the same name.
        if isinstance(found, type) and issubclass(found, upstream):
            return found
        looked.append(f"{name} ({source}; {'not there' if module is None else f'has no {upstream.__name__}'})")
    raise ModelNotBuiltError(
        f"There is no generated {upstream.__name__}. Looked in {', '.join(looked)}. `vgen build {folder}` builds it."
    )
