# SPDX-License-Identifier: Apache-2.0
"""Why a call runs uncompiled, in one line."""

from .compiler import CompiledCore
from .graph_only import GraphOnlyError

BIDIRECTIONAL = "without a mask, use_bidirectional_attention has no effect in a graph"
"""Without a mask, sdpa takes the attention's word in eager. While traced, masking_utils makes a causal mask all the same."""


def pinned(core: CompiledCore) -> str:
    names = ", ".join(f"{name}.shape[{dim}]" for name, dim in core.pinned)
    return f"its graph holds for one {names} only: another would have to be compiled for each"


_BROKEN = "User-inserted graph break. Message: "


def one_line(error: BaseException) -> str:
    refused = getattr(error, "inner_exception", None)
    if isinstance(refused, GraphOnlyError):
        return f"it can't be compiled: {refused}"
    # What a backend raised stands below the line that names the backend.
    lines = [line for line in map(str.strip, str(error).splitlines()) if line and not line.endswith("raised:")]
    # A reason of the runtime's own stands below the line that says that a graph was broken on purpose.
    lines = [line.partition(_BROKEN)[2] for line in lines if _BROKEN in line] or lines
    return f"it can't be compiled: {type(error).__name__}: {next(iter(lines), 'no message')}"
