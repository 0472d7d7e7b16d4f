"""Upstream's own code under stock `torch.compile`: what explains a difference to eager that generated code can't help.

With fewer key-value heads than query heads, `sdpa_attention_forward` (transformers/integrations/sdpa_attention.py) hands the
kernel grouped heads in eager and repeated ones while traced; and `masking_utils` makes masks while traced that eager skips.
Both are the same function in other roundings.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch._dynamo.config

REASON = "as upstream's own code under torch.compile, which takes another attention kernel or mask than in eager"


def compiled_copy(upstream: Any, regions: Iterable[str]) -> Any:
    """A copy of upstream's model in which `torch.compile` with backend "eager" runs the parts of these names, as the regions
    of the generated model run. A part inside another is left to it."""
    twin = copy.deepcopy(upstream)
    done: list[str] = []
    for name in sorted(regions):
        if not any(outer == "" or name.startswith(f"{outer}.") for outer in done):
            done.append(name)
            twin.get_submodule(name).compile(backend="eager", dynamic=True)
    return twin


def patient() -> Any:
    """A context in which Dynamo compiles as often as it takes: shared forwards count together."""
    return torch._dynamo.config.patch(recompile_limit=512, accumulated_recompile_limit=4096)
