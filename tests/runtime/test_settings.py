# SPDX-License-Identifier: Apache-2.0
"""Options: captured at construction, fixed, kept by copies; and the state of an instance beside them."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch

from vgen.runtime import Options, OptionsError, counters, current_options, options


def test_blocks_nest_and_end() -> None:
    with options(backend="eager"):
        with options(compile_mm_encoder=True):
            assert current_options() == Options(backend="eager", compile_mm_encoder=True)
        assert current_options() == Options(backend="eager")
    assert current_options() == Options()


def test_captured_by_every_generated_class(tiny: Any) -> None:
    with options(backend="eager"):
        model = tiny.LlamaForCausalLM(tiny.llama_config())
    assert model.vgen_options == model.model.vgen_options == Options(backend="eager")
    with pytest.raises(AttributeError):
        model.vgen_options = Options()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "inductr"}, "no torch.compile backend 'inductr': this PyTorch has .*eager"),
        ({"backend": 3}, "a backend's name or a callable"),
        ({"mode": "fast"}, "no Inductor mode 'fast': this PyTorch has .*max-autotune"),
        ({"mode": "max-autotune", "backend": "eager"}, "Inductor's"),
        ({"compile": 1}, "compile is True or False"),
        ({"compiler": True}, "no option compiler: the options are compile, "),
    ],
)
def test_bad_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message), options(**changes):
        pass


def copies(model: Any) -> list[Any]:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]


def test_copies_keep_options_and_compile_for_themselves(tiny: Any) -> None:
    with options(backend="eager"):
        model = tiny.LlamaModel(tiny.llama_config(num_hidden_layers=1)).eval()
    ids = torch.arange(8).view(2, 4)
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        for each in (made := copies(model)):
            assert each.vgen_options == model.vgen_options
            assert not each.__dict__["_vgen_variants"].cores
            assert each.state_dict().keys() == model.state_dict().keys()
        assert torch.equal(made[0](ids).last_hidden_state, expected)
    assert counters()["llama.decoder"].compiles == 2


def test_upstream_answers(tiny: Any) -> None:
    model = tiny.LlamaModel
    assert not model.is_custom_code()
    assert model._can_set_attn_implementation()
    assert not model._can_set_experts_implementation()
    # Nothing is cached on the generated class.
    assert not [name for name in vars(model) if "cached" in name]


def test_a_users_subclass_is_custom_code(tiny: Any) -> None:
    class Own(tiny.LlamaModel):  # type: ignore[misc,name-defined]
        pass

    assert Own.is_custom_code()
    assert not tiny.LlamaModel.is_custom_code()
