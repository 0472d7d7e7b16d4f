# SPDX-License-Identifier: Apache-2.0
"""Positions that run through without a gap: upstream looks at their values in eager, and can't in a graph.

Where it is given neither a mask nor a cache, Transformers' `masking_utils` takes positions that don't rise one by one for several
sequences in one row, which mustn't see each other. A graph makes the mask of such in any case, where eager makes none, and attends
by another kernel. So a region takes upstream's own look before its graph runs, and in the graph of a call whose positions it found
plain, upstream's function finds nothing packed. The answer is a part of the variant.
"""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config
from torch._dynamo.variables import misc
from transformers import masking_utils
from transformers.cache_utils import Cache

_FIND = "find_packed_sequence_indices"
_MAKERS = ("create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask")

# Torch 2.11's Dynamo leaves out methods of loggers only: graphs make the mask there.
_CAN_TELL = hasattr(torch._dynamo.config, "ignore_logging_functions") and hasattr(misc, "IgnoredFunctionVariable")

FINDS_PACKED: tuple[Any, ...] = tuple(
    each for each in (getattr(masking_utils, _FIND, None),) if each is not None and _CAN_TELL
)
"""What Dynamo is to leave out, and so to take for None, in a graph for plain positions."""


def are_plain(module: Any, arguments: dict[str, Any], *, own: bool, first_of_four: bool) -> bool:
    """Whether upstream finds nothing packed in a call, by the look that it takes itself. On a GPU that waits for the device, as
    upstream's does: it isn't taken where upstream takes none.

    Args:
        module: A region's module, whose masks are made of nothing but such positions, and of ranges.
        arguments: The core's arguments by name. `position_ids`: integers of shape (batch_size, sequence_length), or
            (4, batch_size, sequence_length).
        own: Masks are made of `position_ids` with two dimensions.
        first_of_four: Masks are made of `position_ids[0]` where it has three, of which the first is 4.

    Returns:
        False also where it isn't known: a graph makes whatever mask there is to make.
    """
    if not FINDS_PACKED or arguments.get("attention_mask") is not None:
        return False
    if arguments.get("past_key_values") is not None or _makes_cache(module, arguments):
        return False
    if any(isinstance(each, Cache) for each in arguments.values()):  # by one of its other names
        return False
    positions = arguments.get("position_ids")
    if positions is None:
        return True
    if not isinstance(positions, torch.Tensor) or positions.is_meta or positions.shape[-1] != _length(arguments):
        return False
    if positions.ndim == 3 and positions.shape[0] == 4 and first_of_four:
        positions = positions[0]
    elif positions.ndim != 2 or not own:
        return False
    return masking_utils.find_packed_sequence_indices(positions) is None


def _makes_cache(module: Any, arguments: dict[str, Any]) -> bool:
    """Whether upstream's forward makes a cache where it is given none: as its `merge_with_config_defaults` has it."""
    if "use_cache" not in arguments:
        return False
    uses = arguments["use_cache"]
    if uses is None:
        uses = getattr(getattr(module, "config", None), "use_cache", None)
    return bool(uses) and not (getattr(module, "gradient_checkpointing", False) and module.training)


def _length(arguments: dict[str, Any]) -> int | None:
    """The number of tokens in a row."""
    for name in ("inputs_embeds", "input_ids", "hidden_states"):
        given = arguments.get(name)
        if isinstance(given, torch.Tensor) and given.ndim > 1:
            return given.shape[1]
    return None


@cache
def made_by_looking() -> tuple[str, ...]:
    """The lines that no graph for plain positions may have gone through, as `Region.graph_only` has them."""
    return tuple(_lines(each) for each in FINDS_PACKED)


@cache
def made_without_looking() -> tuple[str, ...]:
    """Likewise, those where causal masks are made in the end: where nothing is packed and no token is masked, sdpa needs none, and
    an attention that looks both ways mustn't have one."""
    makers = (getattr(masking_utils, name, None) for name in _MAKERS)
    return tuple(_lines(each, after="mask_interface(") for each in makers if each is not None)


def _lines(function: Any, after: str = "") -> str:
    """Those of a function, from the first that has that text."""
    lines, first = inspect.getsourcelines(function)
    skipped = next((index for index, line in enumerate(lines) if after in line), 0)
    return f"{Path(masking_utils.__file__).name}:{first + skipped}-{first + len(lines) - 1}"
