# SPDX-License-Identifier: Apache-2.0
"""Which rotary embeddings rule a decoder out."""

from types import SimpleNamespace
from typing import Any

import pytest

from vgen.runtime.rope import rope_reason

LONG: dict[str, Any] = {"rope_type": "longrope", "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_parameters": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "llama3", "original_max_position_embeddings": 64}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": None}},
        {"rope_parameters": LONG | {"original_max_position_embeddings": 256}},
        {"rope_scaling": {"type": "linear"}},
    ],
)
def test_fixed(config: dict[str, Any]) -> None:
    assert rope_reason(SimpleNamespace(max_position_embeddings=256, **config)) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 'rope type "dynamic" recomputes'),
        ({"rope_scaling": {"type": "dynamic_ntk"}}, 'rope type "dynamic_ntk" recomputes'),
        ({"rope_parameters": {"sliding": {"rope_type": "dynamic"}}}, 'rope type "dynamic" of sliding recomputes'),
        ({"rope_parameters": LONG}, "beyond 64 positions, and the model goes to 256"),
        (
            {"rope_parameters": {"rope_type": "longrope"}, "original_max_position_embeddings": 32},
            "beyond 32 positions",
        ),
    ],
)
def test_rescaled(config: dict[str, Any], reason: str) -> None:
    found = rope_reason(SimpleNamespace(max_position_embeddings=256, **config))
    assert found is not None
    assert reason in found


def test_a_real_config(tiny: Any) -> None:
    assert rope_reason(tiny.llama_config()) is None
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert rope_reason(tiny.llama_config(rope_parameters=rope)) is not None
