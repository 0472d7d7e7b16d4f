# SPDX-License-Identifier: Apache-2.0
"""Attention that is causal only where it is given no mask, though its model's masks aren't causal.

sdpa takes an attention's own word, `is_causal`, where there is no mask. Transformers' `masking_utils` leaves out a mask that
masks nothing: it looks at the values in eager, and can't in a graph, which attends by the mask that it made.
"""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

from transformers import masking_utils

_MAKES_BIDIRECTIONAL = "create_bidirectional_mask"
_MAKES_CAUSAL = "create_causal_mask"


def graph_only_masks(module: Any) -> tuple[str, ...]:
    """The lines that make a mask in a graph of this module where eager leaves it out and is causal, as `Region.graph_only` has
    them; empty where there are none. Whatever attention it has now: another can be set later."""
    if not _has_mixed_attention(module):
        return ()
    lines, first = inspect.getsourcelines(getattr(masking_utils, _MAKES_BIDIRECTIONAL))
    return (f"{Path(masking_utils.__file__).name}:{first}-{first + len(lines) - 1}",)


def _has_mixed_attention(module: Any) -> bool:
    """Whether an attention calls itself causal, and its model makes bidirectional masks for it, and can attend by sdpa."""
    for maker in module.modules():
        cls: Any = type(maker)
        if not getattr(cls, "_supports_sdpa", True):
            continue
        if _makes_bidirectional(cls) and any(vars(part).get("is_causal") is True for part in maker.modules()):
            return True
    return False


@cache
def _makes_bidirectional(cls: Any) -> bool:
    """Whether forward makes bidirectional masks, and no causal ones, which its causal attention would be for."""
    names: set[str] = set()
    for each in cls.__mro__:
        for method in ("forward", "core"):
            code = getattr(inspect.unwrap(vars(each).get(method, cls)), "__code__", None)
            names.update(code.co_names if code is not None else ())
    return _MAKES_BIDIRECTIONAL in names and _MAKES_CAUSAL not in names
