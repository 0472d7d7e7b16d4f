# SPDX-License-Identifier: Apache-2.0
"""What a core is compiled as."""

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from transformers.utils import logging as transformers_logging

from vgen.runtime.compiler import CompiledCore
from vgen.runtime.settings import Options


class Attention(nn.Module):
    """A scale is no factor of a tensor, but an argument; the small number is a summand."""

    scale = 0.3
    epsilon = 1e-5


def core(module: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(x, x, x, scale=module.scale) + module.epsilon


def inputs_of(*, has_fixed_floats: bool) -> list[list[int]]:
    """Of each graph that `core` is captured as, the dimensions of its inputs: of numbers, none."""
    found: list[list[int]] = []

    def backend(graph: fx.GraphModule, _: list[torch.Tensor]) -> Any:
        values = (node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder")
        found.append([each.ndim for each in values if isinstance(each, torch.Tensor)])
        return graph

    compiled = CompiledCore(
        core, tag="core", options=Options(backend=backend), is_shared=True, has_fixed_floats=has_fixed_floats
    )
    module, x = Attention(), torch.randn(2, 3, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(module, {"x": x}), core(module, x), rtol=0, atol=0)
        module.scale = 0.4
        torch.testing.assert_close(compiled(module, {"x": x}), core(module, x), rtol=0, atol=0)
    return found


def test_floats_of_a_model_are_constants() -> None:
    # Captured once more when one changed.
    assert inputs_of(has_fixed_floats=True) == [[4], [4]]
    # Layers that differ in a number share a graph that has it as an input.
    assert inputs_of(has_fixed_floats=False)[0] == [4, 0, 0]


def test_nothing_is_traced_a_second_time() -> None:
    from torch._dynamo.utils import clear_compilation_metrics, get_compilation_metrics

    clear_compilation_metrics()  # Only the last few are kept.
    compiled = CompiledCore(core, tag="core", options=Options(backend="inductor"), is_shared=False)
    with torch.no_grad():
        compiled(Attention(), {"x": torch.randn(2, 3, 5, 8)})
    # Some entries are of no function: what is spent while graphs run.
    made = [each for each in get_compilation_metrics() if each.co_name is not None]
    assert [each.co_name for each in made] == ["core"]
    assert not made[0].restart_reasons


@torch.no_grad()
def test_what_does_not_fit_is_traced_once_and_with_the_settings() -> None:
    traced: list[bool] = []

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # untyped in PyTorch
    def note() -> int:
        traced.append(torch._dynamo.config.allow_rnn)
        return 0

    def noted(module: Any, x: torch.Tensor) -> torch.Tensor:
        return core(module, x) + note()

    compiled = CompiledCore(noted, tag="core", options=Options(backend="eager"), is_shared=False)
    module, x = Attention(), torch.randn(2, 3, 5, 8)
    for count in (1, 2, 3):
        module.scale = 0.1 * count
        torch.testing.assert_close(compiled(module, {"x": x}), core(module, x), rtol=0, atol=0)
        compiled(module, {"x": x})
        assert traced == [True] * count
        # Forgets what was compiled, and who asked to be told of it.
        torch._dynamo.reset()
        compiled(module, {"x": x})
        assert traced.pop()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 4, batch_first=True)


# Transformers' own: it has `warning_once`.
LOGGER: Any = transformers_logging.get_logger("transformers.test")


def recurrent_core(module: Any, x: torch.Tensor) -> torch.Tensor:
    LOGGER.warning_once("Only once.")
    found: torch.Tensor = module.layer(x)[0]
    return found


def test_recurrent_layers_and_messages_do_not_break_a_graph() -> None:
    module, x = Recurrent(), torch.randn(2, 3, 4)
    compiled = CompiledCore(recurrent_core, tag="core", options=Options(backend="eager"), is_shared=False)
    with torch.no_grad():
        assert torch.equal(compiled(module, {"x": x}), recurrent_core(module, x))
    assert compiled.backend.graphs == 1
