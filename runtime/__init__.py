# SPDX-License-Identifier: Apache-2.0
"""What generated packages import, and what their users call.

Names are imported when they are used, so that the build can use `vgen.runtime.digest` where there is no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention import packed_attention
    from .check import require_upstream
    from .children import child_class, child_from_backbone, child_from_config, child_from_pretrained
    from .contract import Contract, size, tensor
    from .counting import RegionCounters, counters, reset_counters
    from .errors import (
        ArchitectureError,
        ArtifactError,
        EncoderNotFoundError,
        LockError,
        ModelNotBuiltError,
        OptionsError,
        UpstreamChangedError,
        VgenRuntimeError,
    )
    from .expert_loops import ExpertLoop
    from .grouped import grouped_attention
    from .loader import load
    from .loops import loop_over_values
    from .recording import within_recorder
    from .region import Compiled, Region, Role
    from .settings import Options, current_options, options
    from .size_buffers import SizeBuffers, divide_rounding_up
    from .size_loops import loop_over_sizes
    from .sizes import divide_size, tensor_of_range
    from .truths import holds_any
    from .upstream import AsUpstream

_MODULES = {
    "ArchitectureError": "errors",
    "ArtifactError": "errors",
    "AsUpstream": "upstream",
    "Compiled": "region",
    "Contract": "contract",
    "EncoderNotFoundError": "errors",
    "ExpertLoop": "expert_loops",
    "LockError": "errors",
    "ModelNotBuiltError": "errors",
    "Options": "settings",
    "OptionsError": "errors",
    "Region": "region",
    "RegionCounters": "counting",
    "Role": "region",
    "SizeBuffers": "size_buffers",
    "UpstreamChangedError": "errors",
    "VgenRuntimeError": "errors",
    "child_class": "children",
    "child_from_backbone": "children",
    "child_from_config": "children",
    "child_from_pretrained": "children",
    "counters": "counting",
    "current_options": "settings",
    "divide_rounding_up": "size_buffers",
    "divide_size": "sizes",
    "grouped_attention": "grouped",
    "holds_any": "truths",
    "load": "loader",
    "loop_over_sizes": "size_loops",
    "loop_over_values": "loops",
    "options": "settings",
    "packed_attention": "attention",
    "require_upstream": "check",
    "reset_counters": "counting",
    "size": "contract",
    "tensor": "contract",
    "tensor_of_range": "sizes",
    "within_recorder": "recording",
}

__all__ = [
    "ArchitectureError",
    "ArtifactError",
    "AsUpstream",
    "Compiled",
    "Contract",
    "EncoderNotFoundError",
    "ExpertLoop",
    "LockError",
    "ModelNotBuiltError",
    "Options",
    "OptionsError",
    "Region",
    "RegionCounters",
    "Role",
    "SizeBuffers",
    "UpstreamChangedError",
    "VgenRuntimeError",
    "child_class",
    "child_from_backbone",
    "child_from_config",
    "child_from_pretrained",
    "counters",
    "current_options",
    "divide_rounding_up",
    "divide_size",
    "grouped_attention",
    "holds_any",
    "load",
    "loop_over_sizes",
    "loop_over_values",
    "options",
    "packed_attention",
    "require_upstream",
    "reset_counters",
    "size",
    "tensor",
    "tensor_of_range",
    "within_recorder",
]


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    return __all__
