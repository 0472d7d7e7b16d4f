# SPDX-License-Identifier: Apache-2.0
"""Regions on real, tiny models: what compiles, how often, what falls back, and that results are upstream's."""

import copy
import logging
from functools import cached_property
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache
from transformers.models.llama import modeling_llama
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from vgen.runtime import Contract, EncoderNotFoundError, Region, Role, counters, options, tensor
from vgen.runtime.encoders import require_encoder

IDS = torch.arange(18).view(2, 9)


def pair(tiny: Any, **config: Any) -> tuple[Any, Any]:
    """Upstream's model and the compiled one, with the same weights."""
    upstream = modeling_llama.LlamaForCausalLM(tiny.llama_config(**config)).eval()
    with options(backend="eager"):
        ours = tiny.LlamaForCausalLM(tiny.llama_config(**config)).eval()
    ours.load_state_dict(upstream.state_dict())
    return upstream, ours


def test_one_compile_for_all_lengths(tiny: Any) -> None:
    upstream, ours = pair(tiny)
    with torch.no_grad():
        for shape in [(2, 9), (3, 5), (4, 17), (2, 32)]:
            ids = torch.randint(0, 64, shape)
            assert torch.equal(ours(ids).logits, upstream(ids).logits)
    count = counters()["llama.decoder"]
    assert (count.calls, count.compiles, count.graphs, count.variants) == (4, 1, 1, 1)
    assert not count.fallbacks


@pytest.mark.parametrize("cache", [None, "static"])
def test_two_compiles_for_generate(tiny: Any, cache: str | None) -> None:
    upstream, ours = pair(tiny)
    for length in (9, 5):
        ids = torch.randint(1, 64, (2, length))
        kwargs = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": cache, "pad_token_id": 0}
        assert torch.equal(ours.generate(ids, **kwargs), upstream.generate(ids, **kwargs))
    assert counters()["llama.decoder"].compiles == 2


@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_training_gradients_are_upstreams(tiny: Any, key_value_heads: int) -> None:
    upstream, ours = pair(tiny, num_key_value_heads=key_value_heads)
    for model in (upstream.train(), ours.train()):
        model(IDS, labels=IDS, use_cache=False).loss.backward()
    # With grouped heads, upstream takes another path through attention while it is compiled: it always makes a mask
    # (transformers/masking_utils.py:295), and with a mask repeats the keys (integrations/sdpa_attention.py:135).
    tolerance = 0.0 if key_value_heads == 4 else 1e-6
    for a, b in zip(upstream.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0.0, atol=tolerance)
    assert counters()["llama.decoder"].compiles == 1


def test_one_compiled_and_one_not(tiny: Any) -> None:
    upstream, ours = pair(tiny)
    with options(compile=False):
        plain = tiny.LlamaForCausalLM(tiny.llama_config()).eval()
    plain.load_state_dict(upstream.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, upstream(IDS).logits)
        assert "llama.decoder" not in counters()
        assert torch.equal(ours(IDS).logits, upstream(IDS).logits)
    assert counters()["llama.decoder"].calls == 1
    assert modeling_llama.LlamaModel.forward.__module__ == "transformers.models.llama.modeling_llama"


def test_hooks_added_later_take_effect(tiny: Any) -> None:
    upstream, ours = pair(tiny)
    with torch.no_grad():
        before = ours(IDS).logits
        handles = [m.model.layers[0].mlp.register_forward_hook(lambda _, __, out: 2 * out) for m in (ours, upstream)]
        assert not torch.equal(ours(IDS).logits, before)
        assert torch.equal(ours(IDS).logits, upstream(IDS).logits)
        for handle in handles:
            handle.remove()
        assert torch.equal(ours(IDS).logits, before)


def test_hidden_states_are_recorded(tiny: Any) -> None:
    upstream, ours = pair(tiny)
    with torch.no_grad():
        theirs, mine = (m(IDS, output_hidden_states=True).hidden_states for m in (upstream, ours))
    assert len(mine) == 3
    assert all(torch.equal(a, b) for a, b in zip(theirs, mine, strict=True))
    assert not counters()["llama.decoder"].fallbacks


def test_upstreams_errors(tiny: Any) -> None:
    upstream, ours = pair(tiny)
    embeds = torch.randn(2, 9, 32)
    for kwargs in ({}, {"input_ids": IDS, "inputs_embeds": embeds}, {"inputs_embeds": embeds[..., :30]}):
        with pytest.raises(Exception) as theirs:  # noqa: PT011 (any error that upstream raises)
            upstream.model(**kwargs)
        with pytest.raises(type(theirs.value)) as mine:
            ours.model(**kwargs)
        assert str(mine.value) == str(theirs.value)
        assert mine.value.__context__ is None
    with torch.no_grad():
        # The variant of the wrong embeddings isn't given up.
        ours.model(inputs_embeds=embeds[..., :32])
    assert not counters()["llama.decoder"].fallbacks


def test_a_call_outside_of_the_contract(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    upstream, ours = pair(tiny)
    reason = "extra has a value of type builtins.object, which the contract can't describe"
    with torch.no_grad(), caplog.at_level(logging.WARNING, "vgen.runtime"):
        for _ in range(2):
            ours_out, theirs_out = (m(IDS, extra=object()).last_hidden_state for m in (ours.model, upstream.model))
            assert torch.equal(ours_out, theirs_out)
    assert counters()["llama.decoder"].fallbacks == {reason: 2}
    assert len([each for each in caplog.messages if reason in each]) <= 1


def test_sizes_that_the_contract_takes_for_equal_may_differ(tiny: Any) -> None:
    upstream, ours = pair(tiny)
    ids = IDS[:1].expand(2, -1)
    with torch.no_grad():
        for mask in (torch.ones(2, 9, dtype=torch.long), torch.ones(3, 9, dtype=torch.long)):
            theirs = upstream.model(ids, attention_mask=mask).last_hidden_state
            assert torch.equal(ours.model(ids, attention_mask=mask).last_hidden_state, theirs)
    assert not counters()["llama.decoder"].fallbacks


def test_what_cannot_be_captured_runs_uncompiled(tiny: Any) -> None:
    upstream, ours = pair(tiny)
    for model in (upstream, ours):
        model.model.layers[0].register_forward_hook(lambda *_: torch._dynamo.graph_break())
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(ours(IDS).logits, upstream(IDS).logits)
    (reason,) = counters()["llama.decoder"].fallbacks
    assert reason.startswith("it can't be compiled: Unsupported: ")
    assert counters()["llama.decoder"].fallbacks[reason] == 2


def test_cached_properties_are_computed_before_a_graph(tiny: Any) -> None:
    """In Python 3.11 they take a lock, which no graph can."""
    _, ours = pair(tiny)

    class Padded(type(ours.model.norm)):  # type: ignore[misc]
        @cached_property
        def padding(self) -> int:
            return 3

        @cached_property
        def never(self) -> int:
            raise AssertionError("nobody reads it")

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + self.padding  # type: ignore[no-any-return]

    ours.model.norm.__class__ = Padded
    with torch.no_grad():
        ours(IDS)
    assert not counters()["llama.decoder"].fallbacks


def test_dynamic_rope_runs_uncompiled(tiny: Any) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    upstream, ours = pair(tiny, rope_parameters=rope, max_position_embeddings=8)
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, upstream(IDS).logits)
    count = counters()["llama.decoder"]
    assert count.compiles == 0
    assert next(iter(count.fallbacks)).startswith('rope type "dynamic"')


def test_inside_another_compile(tiny: Any) -> None:
    upstream, ours = pair(tiny)
    outer = torch.compile(ours, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(outer(IDS).logits, upstream(IDS).logits)
    assert "llama.decoder" not in counters()


def test_inside_a_dispatch_mode(tiny: Any) -> None:
    _, ours = pair(tiny)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        ours(IDS)
    assert flops.get_total_flops() > 0
    assert counters()["llama.decoder"].fallbacks == {"it runs inside a TorchDispatchMode": 1}


def test_inside_a_function_mode(tiny: Any) -> None:
    class Doubled(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **kwargs or {})
            return found * 2 if function is torch.nn.functional.linear else found

    upstream, ours = pair(tiny)
    with Doubled(), torch.no_grad():
        assert torch.equal(ours(IDS).logits, upstream(IDS).logits)
    assert counters()["llama.decoder"].fallbacks == {"it runs inside a TorchFunctionMode": 1}
    with torch.device("cpu"), torch.no_grad():
        assert torch.equal(ours(IDS).logits, upstream(IDS).logits)
    assert counters()["llama.decoder"].compiles == 1


def test_inside_forward_mode_differentiation(tiny: Any) -> None:
    upstream, ours = pair(tiny)
    embeddings = torch.randn(2, 9, upstream.config.hidden_size)
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        given = forward_ad.make_dual(embeddings, torch.ones_like(embeddings))
        theirs, mine = (forward_ad.unpack_dual(m.model(inputs_embeds=given)[0]).tangent for m in (upstream, ours))
        assert theirs.any()
        assert torch.equal(mine, theirs)
    assert counters()["llama.decoder"].fallbacks == {"it runs inside forward-mode differentiation": 1}


def test_errors_of_compiled_code_propagate(tiny: Any) -> None:
    _, ours = pair(tiny)
    with torch.no_grad():
        ours(IDS)
        with pytest.raises(IndexError):
            ours(IDS + 64)
    assert not counters()["llama.decoder"].fallbacks


def test_settings_are_put_back(tiny: Any) -> None:
    import torch._dynamo.config as dynamo
    import torch.fx.experimental._config as shapes

    _, ours = pair(tiny)
    before = (shapes.use_duck_shape, dynamo.skip_nnmodule_hook_guards, dynamo.recompile_limit)
    with torch.no_grad():
        ours(IDS)
    assert (shapes.use_duck_shape, dynamo.skip_nnmodule_hook_guards, dynamo.recompile_limit) == before


def test_more_instances_than_dynamos_limit(tiny: Any) -> None:
    class Own(tiny.LlamaMLP):  # type: ignore[misc,name-defined]
        region = Region("own.decoder", role=Role.DECODER, contract=Contract(x=tensor("batch", "length", None)))

    with options(backend="eager"):
        modules = [Own(tiny.llama_config()) for _ in range(12)]
    for module in modules:
        module(torch.randn(2, 5, 32))
    assert counters()["own.decoder"].compiles == 12


def test_blocks_share_what_they_compile(tiny: Any) -> None:
    config = tiny.llama_config()
    with options(backend="eager"):
        blocks = [tiny.LlamaMLP(config) for _ in range(12)]
    x = torch.randn(2, 5, 32)
    for block in blocks:
        assert torch.equal(block(x), modeling_llama.LlamaMLP.forward(block, x))
    assert counters()["llama.block"].compiles == 1


GRIDS = [[(1, 4, 4)], [(1, 8, 6)], [(1, 4, 4), (1, 6, 10)], [(2, 4, 8)], [(1, 2, 4)]]


def vision_inputs(grids: list[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
    grid = torch.tensor(grids)
    return {"hidden_states": torch.randn(int(grid.prod(1).sum()), 1176), "grid_thw": grid}


def vision_pair(tiny: Any, **changes: Any) -> tuple[Any, Any]:
    upstream = modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(tiny.vision_config()).eval()
    with options(**{"backend": "eager", "compile_mm_encoder": True} | changes):
        ours = tiny.Vision(tiny.vision_config()).eval()
    ours.load_state_dict(upstream.state_dict())
    return upstream, ours


def test_one_compile_for_all_images(tiny: Any) -> None:
    upstream, ours = vision_pair(tiny)
    for grids in GRIDS:
        inputs = vision_inputs(grids)
        theirs, mine = (m(**inputs) for m in (upstream, ours))
        assert torch.equal(mine.last_hidden_state, theirs.last_hidden_state)
        for each in (theirs, mine):
            each.last_hidden_state.square().sum().backward()
    for a, b in zip(upstream.parameters(), ours.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
    assert counters()["vision.encoder"].compiles == 1


def test_encoders_are_compiled_on_request_alone(tiny: Any) -> None:
    upstream, ours = vision_pair(tiny, compile_mm_encoder=False)
    inputs = vision_inputs(GRIDS[0])
    with torch.no_grad():
        assert torch.equal(ours(**inputs).last_hidden_state, upstream(**inputs).last_hidden_state)
    assert "vision.encoder" not in counters()


def test_eager_attention_attends_segment_by_segment(tiny: Any) -> None:
    upstream, ours = vision_pair(tiny)
    upstream.set_attn_implementation("eager")
    ours.set_attn_implementation("eager")
    inputs = vision_inputs(GRIDS[0])
    with torch.no_grad():
        assert torch.equal(ours(**inputs).last_hidden_state, upstream(**inputs).last_hidden_state)
    assert counters()["vision.encoder"].fallbacks == {'attention implementation "eager" attends segment by segment': 1}


def test_too_many_variants(monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    monkeypatch.setattr("vgen.runtime.region.MAX_VARIANTS", 1)
    _, ours = pair(tiny)
    with torch.no_grad():
        ours(IDS)
        ours(IDS, use_cache=False)
    assert list(counters()["llama.decoder"].fallbacks) == ["there are more than 1 variants already"]


def test_no_encoder(tiny: Any) -> None:
    with options(compile_mm_encoder=True):
        model = tiny.LlamaForCausalLM(tiny.llama_config())
    with pytest.raises(EncoderNotFoundError, match=r"vision_tower, visual, .*LlamaForCausalLM and .*LlamaModel"):
        require_encoder(model)


def test_an_encoder_is_found(tiny: Any) -> None:
    require_encoder(vision_pair(tiny)[1])


def test_from_pretrained(tiny: Any, tmp_path: Any) -> None:
    upstream, _ = pair(tiny)
    upstream.save_pretrained(tmp_path)
    with options(backend="eager"):
        ours, info = tiny.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, upstream(IDS).logits)
    with options(compile_mm_encoder=True), pytest.raises(EncoderNotFoundError):
        tiny.LlamaForCausalLM.from_pretrained(tmp_path)


def test_a_callable_backend_and_a_copy(tiny: Any) -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        seen.append(graph)
        return graph.forward

    with options(backend=backend):
        model = tiny.LlamaModel(tiny.llama_config()).eval()
    with torch.no_grad():
        model(IDS)
        copy.deepcopy(model)(IDS)
    assert len(seen) == 2


def test_decode_after_a_prompt(tiny: Any) -> None:
    upstream, ours = pair(tiny)
    caches = [DynamicCache(config=m.config) for m in (upstream, ours)]
    with torch.no_grad():
        for ids in (IDS, IDS[:, :1], IDS[:, 1:2]):
            theirs, mine = (m(ids, past_key_values=c).logits for m, c in zip((upstream, ours), caches, strict=True))
            assert torch.equal(theirs, mine)
    assert counters()["llama.decoder"].compiles == 2


def test_a_region_needs_no_instance() -> None:
    region = Region("some.decoder", role=Role.DECODER, contract=Contract(x=tensor("n")))
    assert copy.deepcopy(region).tag == "some.decoder"
