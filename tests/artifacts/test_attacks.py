"""Whatever is changed after an artifact was loaded, the result is upstream's: by another variant, or by eager."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import PROMPT, decode, served_once
from torch import nn
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

import vgen.runtime as runtime

Attack = Callable[[Any], Any]


def forward(model: Any, ids: torch.Tensor = PROMPT, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, **{"use_cache": False} | arguments).logits
    return logits


class Lora(nn.Module):
    """A low-rank change of a linear layer, as adapters make it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.full((2, base.in_features), 0.1))
        self.up = nn.Parameter(torch.full((base.out_features, 2), 0.1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base(states) + states @ self.down.T @ self.up.T
        return result


def changed(change: Callable[[Any], object]) -> Attack:
    """Change the model, then call it as before."""

    def attack(model: Any) -> torch.Tensor:
        change(model)
        return forward(model)

    return attack


def add_lora(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    attention.q_proj = Lora(attention.q_proj)


def add_hook(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output * 2)


def add_pre_hook(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def replace_weight(model: Any) -> None:
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.full((96, 64), 0.01))


def write_weight(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(3)


def transpose_weight(model: Any) -> None:
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.data = weight.data.T.contiguous().T


def quantise(model: Any) -> None:
    torch.ao.quantization.quantize_dynamic(model.model, {nn.Linear}, inplace=True)


def own_forward(model: Any) -> None:
    mlp = model.model.layers[0].mlp
    whole = mlp.forward
    mlp.forward = lambda states: whole(states) * 2


class DoubledMLP(modeling_llama.LlamaMLP):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states) * 2


def assign_class(model: Any) -> None:
    model.model.layers[0].mlp.__class__ = DoubledMLP


def shallow_copy(copied: Callable[[Any], Any]) -> Attack:
    """Call a copy that has the same modules and another config."""

    def attack(model: Any) -> torch.Tensor:
        other = copied(model.model)
        other.config = copy.copy(other.config)
        other.config.num_hidden_layers = 0
        with torch.no_grad():
            states: torch.Tensor = other(input_ids=PROMPT, use_cache=False).last_hidden_state
        return states

    return attack


def exchanged(place: Any, name: str, change: Callable[..., Any], call: Attack = forward) -> Attack:
    """Call while something stands in the place of a function, as a library of faster kernels puts it there."""

    def attack(model: Any) -> torch.Tensor:
        whole = getattr(place, name)
        setattr(place, name, lambda *args, **kwargs: change(whole(*args, **kwargs)))
        try:
            return call(model).detach()
        finally:
            setattr(place, name, whole)

    return attack


def doubled_attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
    output, weights = SDPA(*args, **kwargs)
    return output * 2, weights


def registering(attention: Callable[..., Any]) -> Attack:
    """Put another function in the place of the attention that was served."""

    def attack(model: Any) -> torch.Tensor:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", attention)
        try:
            return forward(model)
        finally:
            ALL_ATTENTION_FUNCTIONS.register("sdpa", SDPA)

    return attack


def activation_of_no_file(model: Any) -> None:
    """Of a class as those of a notebook."""
    place = sys.modules["no_file"] = ModuleType("no_file")
    exec("import torch\nclass Act(torch.nn.Module):\n    def forward(self, x): return x * 2", place.__dict__)
    model.model.layers[0].mlp.act_fn = place.Act()


def autocast(model: Any) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return forward(model)


def inference(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=PROMPT, use_cache=False).logits.clone()  # type: ignore[no-any-return]


def gradients(model: Any) -> torch.Tensor:
    model(input_ids=PROMPT, use_cache=False).logits.sum().backward()
    gradient: torch.Tensor = model.model.layers[0].mlp.up_proj.weight.grad
    return gradient


def training(model: Any) -> torch.Tensor:
    model.model.layers[0].self_attn.attention_dropout = 0.5
    model.train()
    torch.manual_seed(7)
    return forward(model)


def dynamic_decode(model: Any) -> torch.Tensor:
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(input_ids=PROMPT, past_key_values=cache, use_cache=True)
        return model(input_ids=PROMPT[:, :1], past_key_values=cache, use_cache=True).logits  # type: ignore[no-any-return]


def another_cache_length(model: Any) -> torch.Tensor:
    with torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=9)
        return model(input_ids=PROMPT, past_key_values=cache, use_cache=True).logits  # type: ignore[no-any-return]


def odd_default_dtype(model: Any) -> torch.Tensor:
    torch.set_default_dtype(torch.float64)
    try:
        return forward(model)
    finally:
        torch.set_default_dtype(torch.float32)


SDPA = ALL_ATTENTION_FUNCTIONS["sdpa"]
EMBEDDINGS = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(3))
ATTACKS: dict[str, Attack] = {
    "another dtype of ids": lambda m: forward(m, PROMPT.int()),
    "weights of another dtype": changed(lambda m: m.to(torch.bfloat16)),
    "one weight of another dtype": changed(lambda m: m.model.layers[0].mlp.to(torch.float64)),
    "embeddings in place of ids": lambda m: forward(m, None, inputs_embeds=EMBEDDINGS),  # type: ignore[arg-type]
    "embeddings of other strides": lambda m: forward(m, None, inputs_embeds=EMBEDDINGS.mT.contiguous().mT),  # type: ignore[arg-type]
    "a mask": lambda m: forward(m, attention_mask=tiny.padded("llama", "left")["attention_mask"][:, :9]),
    "ids of other strides": lambda m: forward(m, PROMPT.T.contiguous().T),
    "every other id": lambda m: forward(m, torch.cat([PROMPT, PROMPT], 1)[:, ::2]),
    "an expanded row": lambda m: forward(m, PROMPT[:1].expand(2, -1)),
    "a batch of 1": lambda m: forward(m, PROMPT[:1]),
    "an empty batch": lambda m: forward(m, PROMPT[:0]),
    "one token": lambda m: forward(m, PROMPT[:, :1]),
    "no tokens": lambda m: forward(m, PROMPT[:, :0]),
    "more tokens": lambda m: forward(m, tiny.text(2, 100)),
    "more dimensions": lambda m: forward(m, PROMPT[None]),
    "another device": lambda m: forward(m.to("meta"), PROMPT.to("meta")),
    "positions": lambda m: forward(m, position_ids=torch.arange(9).flip(0)[None]),
    "positions of each": lambda m: forward(m, position_ids=torch.arange(18).view(2, 9)),
    "an unexpected argument": lambda m: forward(m, nothing_such=3),
    "hidden states": lambda m: m(input_ids=PROMPT, use_cache=False, output_hidden_states=True).hidden_states[1],
    "a growing cache": dynamic_decode,
    "another length of the cache": another_cache_length,
    "an attribute that attention reads": changed(lambda m: setattr(m.model.layers[0].self_attn, "scaling", 0.9)),
    "an attribute that a norm reads": changed(lambda m: setattr(m.model.norm, "variance_epsilon", 1.0)),
    "a config field": changed(lambda m: m.set_attn_implementation("eager")),
    "training": training,
    "gradients": gradients,
    "autocast": autocast,
    "inference mode": inference,
    "another default dtype": odd_default_dtype,
    "weights written to": changed(write_weight),
    "a weight replaced": changed(replace_weight),
    "a weight of other strides": changed(transpose_weight),
    "quantised": changed(quantise),
    "LoRA": changed(add_lora),
    "a hook": changed(add_hook),
    "a pre-hook": changed(add_pre_hook),
    "a forward of its own": changed(own_forward),
    "a layer less": changed(lambda m: setattr(m.model, "layers", nn.ModuleList())),
    "another activation": changed(lambda m: setattr(m.model.layers[0].mlp, "act_fn", nn.ReLU())),
    "another attention of that name": registering(doubled_attention),
    "an attention that wraps": registering(functools.wraps(SDPA)(doubled_attention)),
    "an activation of no file": changed(activation_of_no_file),
    "a class assigned": changed(assign_class),
    "a shallow copy": shallow_copy(copy.copy),
    "a replica": shallow_copy(lambda m: m._replicate_for_data_parallel()),
    "a function exchanged": exchanged(
        modeling_llama, "apply_rotary_pos_emb", lambda found: (found[0] * 1e4, found[1])
    ),
    "a method exchanged": exchanged(modeling_llama.LlamaMLP, "forward", lambda states: states * 2),
    "PyTorch's function exchanged": exchanged(nn.functional, "linear", lambda states: states * 2),
    "a cache's method exchanged": exchanged(StaticLayer, "update", lambda found: (found[0], found[1] * 2), decode),
    "a copy": lambda m: forward(copy.deepcopy(m)),
}


def outcome(attack: Attack, model: Any) -> Any:
    """What an attack gives, or the kind of error that it ends in."""
    try:
        return attack(model)
    except Exception as error:
        return type(error)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_results_are_upstreams(served: tuple[Any, Any], name: str) -> None:
    upstream, generated = served
    require_equal(outcome(ATTACKS[name], generated), outcome(ATTACKS[name], upstream), half=name == "autocast")


def require_equal(found: Any, expected: Any, *, half: bool = False) -> None:
    if isinstance(found, torch.Tensor) and found.is_meta:
        # Eager may look at values, which aren't there; a graph has done with that.
        assert isinstance(expected, type) or (expected.is_meta and found.shape == expected.shape)
        return
    if not isinstance(expected, torch.Tensor):
        assert isinstance(found, type), f"upstream raises {expected}"
        return
    assert isinstance(found, torch.Tensor), found
    close = {"rtol": 2e-2, "atol": 2e-2} if half or expected.dtype is torch.bfloat16 else {}
    torch.testing.assert_close(found, expected, **close)


def test_what_changes_nothing_is_still_served(served: tuple[Any, Any]) -> None:
    upstream, generated = served
    before = runtime.counters()["llama.decoder"].loaded
    nn.Linear(2, 2).register_forward_hook(lambda *_: None)
    write_weight(generated)
    write_weight(upstream)
    torch.testing.assert_close(forward(generated, tiny.text(3, 21)), forward(upstream, tiny.text(3, 21)))
    with torch.no_grad():
        torch.testing.assert_close(decode(generated), decode(upstream))
    count = runtime.counters()["llama.decoder"]
    assert (count.loaded, count.compiles) == (before + 4, 0)


STEPS: dict[str, Attack] = {
    name: ATTACKS[name]
    for name in (
        "a batch of 1",
        "a mask",
        "every other id",
        "embeddings of other strides",
        "an attribute that attention reads",
        "weights written to",
        "a weight replaced",
        "a hook",
        "LoRA",
        "inference mode",
        "a growing cache",
        "a function exchanged",
        "another length of the cache",
    )
} | {
    "as built": forward,
    "decoding as built": lambda m: decode(m).detach(),
    "the hooks removed": changed(lambda m: m.model.layers[0].mlp._forward_hooks.clear()),
    "evaluation": changed(lambda m: m.eval()),
    "training without dropout": changed(lambda m: m.train()),
}


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=5))
def test_results_are_upstreams_in_any_order(served: tuple[Any, Any], names: list[str]) -> None:
    upstream, generated = served_once()
    for name in names:
        require_equal(outcome(STEPS[name], generated), outcome(STEPS[name], upstream))
