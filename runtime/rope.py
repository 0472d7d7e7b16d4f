# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings that can't hold under a fixed graph, found from the config."""

from collections.abc import Iterator, Mapping


def rope_reason(config: object) -> str | None:
    """Why a decoder with this config must run uncompiled, in one line, or None.

    Upstream's `dynamic_rope_update` (transformers/modeling_rope_utils.py) recomputes the frequencies in the forward,
    from the largest position in use, for two kinds of rope types:

    - those whose name contains "dynamic": it branches on that position, at any length;
    - "longrope": it takes the long factors beyond `original_max_position_embeddings`. Where that is no smaller than
      `max_position_embeddings`, no supported length reaches them, and nothing is in the way.

    Args:
        config: A Transformers config. `rope_parameters` is one dict, or a dict of such dicts by layer type; configs of
            older checkpoints have `rope_scaling` in its place.
    """
    longest = getattr(config, "max_position_embeddings", None)
    for layer_type, parameters in _rope_parameters(config):
        kind = parameters.get("rope_type", parameters.get("type"))
        where = f" of {layer_type}" if layer_type else ""
        if not isinstance(kind, str):
            continue
        if "dynamic" in kind:
            return f'rope type "{kind}"{where} recomputes its frequencies from the positions in use'
        if kind == "longrope":
            original = getattr(config, "original_max_position_embeddings", None)
            original = parameters.get("original_max_position_embeddings", original)
            if isinstance(original, int) and isinstance(longest, int) and original < longest:
                return (
                    f'rope type "longrope"{where} changes its frequencies beyond {original} positions, '
                    f"and the model goes to {longest}"
                )
    return None


def _rope_parameters(config: object) -> Iterator[tuple[str, Mapping[str, object]]]:
    for attribute in ("rope_parameters", "rope_scaling"):
        parameters = getattr(config, attribute, None)
        if isinstance(parameters, Mapping):
            if "rope_type" in parameters or "type" in parameters:
                yield "", parameters
            for key, nested in parameters.items():
                if isinstance(nested, Mapping):
                    yield str(key), nested
