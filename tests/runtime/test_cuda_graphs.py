# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs without a GPU: a recorder whose graphs run the recorded function again, into the outputs it recorded."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import DynamicCache, LlamaConfig, RecurrentGemmaConfig, StaticCache
from transformers.models.llama import modeling_llama
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

from vgen.runtime import Contract, counters, options, size, tensor
from vgen.runtime.cuda_graphs import GraphedCore, GraphStore
from vgen.runtime.held_states import HeldStates
from vgen.runtime.limits import Limits
from vgen.runtime.packing import MAX_TOKENS, MIN_STEP, bucket_for, bucket_of

IDS = torch.arange(18).view(2, 9)
PACKED = Contract(
    x=tensor("tokens", None),
    cu_seqlens=tensor("segments"),
    max_seqlen=size(),
    window_index=tensor("groups"),
    cu_window_seqlens=tensor("windows"),
    max_window_seqlen=size(),
)


class FakeGraph:
    def __init__(self, run: Callable[[], Any], output: Any) -> None:
        self.run, self.output = run, output

    def replay(self) -> None:
        _copy(self.output, self.run())


class FakeRecorder:
    """Counts, and has so many bytes for graphs that each hold one."""

    def __init__(self, budget: int = 100) -> None:
        self.bytes = budget

    def usable(self, tensor: torch.Tensor) -> bool:
        return True

    def record(self, run: Callable[[], Any]) -> tuple[FakeGraph, Any, int]:
        # What is recorded doesn't run: what a cache holds by now is put back.
        output = run()
        return FakeGraph(run, output), output, 1

    def budget(self) -> int:
        return self.bytes

    def enter(self) -> None: ...

    def leave(self) -> None: ...

    def wait(self) -> None: ...


def _copy(into: Any, output: Any) -> None:
    if isinstance(output, torch.Tensor):
        into.copy_(output)
    elif isinstance(output, Mapping):
        for key, value in output.items():
            _copy(into[key], value)
    elif isinstance(output, tuple | list):
        for one, value in zip(into, output, strict=True):
            _copy(one, value)


def graphed(
    run: Callable[..., Any],
    module: nn.Module,
    *,
    budget: int = 100,
    contract: Contract = PACKED,
    is_packed: bool = True,
) -> tuple[Callable[..., Any], GraphStore]:
    """A function of keyword arguments that is replayed, and where its graphs are."""

    def core(module: nn.Module, arguments: dict[str, Any]) -> Any:
        return run(module, **arguments)

    module.eval()
    store = GraphStore(FakeRecorder(budget))
    limits = Limits(module, None)
    held = HeldStates(module)
    made = GraphedCore(core, tag="test", contract=contract, limits=limits, is_packed=is_packed, store=store, held=held)
    return (lambda **arguments: made(module, arguments)), store


def with_graphs(model: Any) -> GraphStore:
    """Give a tiny Llama's decoder a recorder that needs no GPU."""
    store: GraphStore = model.model.__dict__["_vgen_variants"].graphs
    store.recorder = FakeRecorder()
    return store


def llama(tiny: Any) -> tuple[Any, Any, GraphStore]:
    upstream = modeling_llama.LlamaForCausalLM(tiny.llama_config()).eval()
    with options(backend="eager"):
        ours = tiny.LlamaForCausalLM(tiny.llama_config()).eval()
    ours.load_state_dict(upstream.state_dict())
    return upstream, ours, with_graphs(ours)


def packed(tokens: int, window: int = 4, seed: int = 0) -> dict[str, Any]:
    """Arguments of a packed encoder: two images, windows of at most `window` tokens, groups of two tokens."""
    generator = torch.Generator().manual_seed(seed)
    half = tokens // 4 * 2
    windows = torch.tensor(sorted({*range(0, half, window), *range(half, tokens, window), tokens}))
    return {
        "x": torch.randn(tokens, 6, generator=generator),
        "cu_seqlens": torch.tensor([0, half, tokens], dtype=torch.int32),
        "max_seqlen": tokens - half,
        "window_index": torch.randperm(tokens // 2, generator=generator),
        "cu_window_seqlens": windows.to(torch.int32),
        "max_window_seqlen": window,
    }


def encoder(
    module: nn.Module,
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    window_index: torch.Tensor,
    cu_window_seqlens: torch.Tensor,
    max_window_seqlen: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A packed encoder in small: permuted groups, mixing within windows and within images, groups put back and merged."""
    x = x.view(-1, 2, 6)[window_index].reshape(-1, 6)
    for ends, longest in ((cu_window_seqlens, max_window_seqlen), (cu_seqlens, max_seqlen)):
        lengths = ends.diff()
        assert int(lengths.max()) <= longest
        assert int(ends[-1]) == len(x)
        x = module(torch.cat([each.softmax(0) * each.sum(0) for each in x.split(lengths.tolist())]))
    return x, x.view(-1, 2, 6).mean(1)[torch.argsort(window_index)]


@given(st.integers(1, MAX_TOKENS))
def test_buckets_hold_what_they_are_for(tokens: int) -> None:
    bucket = bucket_of(tokens)
    assert tokens <= bucket < tokens + max(MIN_STEP, tokens / 4)
    assert bucket % MIN_STEP == 0
    assert bucket_of(bucket) == bucket


def test_there_are_few_buckets() -> None:
    assert len({bucket_of(tokens) for tokens in range(1, MAX_TOKENS + 1)}) <= 24


@torch.no_grad()
@pytest.mark.parametrize("tokens", [4, 60, 64, 68, 200])
def test_padding_is_exact(tokens: int) -> None:
    module = nn.Linear(6, 6)
    run, store = graphed(encoder, module)
    for seed in range(4):
        arguments = packed(tokens, seed=seed)
        for found, expected in zip(run(**arguments), encoder(module, **arguments), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert store.is_padding
    assert len(store.recorded) == 1


@torch.no_grad()
def test_one_graph_serves_all_sizes_of_a_bucket() -> None:
    module = nn.Linear(6, 6)
    run, store = graphed(encoder, module)
    for tokens in (68, 128, 72, 80, 92, 100, 120):
        arguments = packed(tokens, seed=tokens)
        for found, expected in zip(run(**arguments), encoder(module, **arguments), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert len(store.recorded) <= 2
    assert counters()["test"].replays >= 3


@torch.no_grad()
def test_padding_that_would_change_the_result_is_not_used() -> None:
    def mixing(module: nn.Module, x: torch.Tensor, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return encoder(module, x - x.mean(0), **arguments)

    module = nn.Linear(6, 6)
    run, store = graphed(mixing, module)
    arguments = packed(60)
    for _ in range(4):
        assert all(map(torch.equal, run(**arguments), mixing(module, **arguments)))
    assert not store.is_padding
    assert len(store.recorded) == 1


def test_arguments_that_are_not_understood_are_not_padded() -> None:
    arguments = packed(60)
    assert bucket_for(PACKED, arguments) is not None
    assert bucket_for(PACKED, arguments | {"other": torch.zeros(7)}) is None
    assert bucket_for(PACKED, arguments | {"max_seqlen": None}) is None
    assert bucket_for(PACKED, packed(MAX_TOKENS + 4)) is None
    assert bucket_for(PACKED, packed(4)) is None
    assert bucket_for(Contract(x=tensor("tokens", None)), arguments) is None


@torch.no_grad()
def test_outputs_are_the_callers() -> None:
    run, _ = graphed(lambda module, x: (module(x), x), nn.Linear(6, 6), is_packed=False)
    inputs = [torch.randn(3, 6) for _ in range(4)]
    outputs = [run(x=x) for x in inputs]
    for x, (_, same) in zip(inputs, outputs, strict=True):
        assert torch.equal(same, x)
        same.zero_()
        assert x.any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_a_core_does_to_its_arguments_is_done_to_the_callers(mode: Any) -> None:
    """RWKV's state: a list whose tensors are written to, or exchanged, and that is returned."""

    def step(module: nn.Module, x: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        state[0].add_(x.sum(0))
        state[1] = state[1] + 1
        return module(x) + state[0], state

    linear = nn.Linear(6, 6)
    run, store = graphed(step, linear, is_packed=False)
    with mode():
        ours, theirs = ([torch.zeros(6), torch.zeros(6)] for _ in range(2))
        first = ours[0]
        for seed in range(4):
            x = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))
            expected, found = step(linear, x, theirs), run(x=x, state=ours)
            assert torch.equal(found[0], expected[0])
            assert found[1] is ours
            assert all(map(torch.equal, ours, theirs))
        assert ours[0] is first
    assert not store.recorded


def recurrence() -> Any:
    torch.manual_seed(0)
    unit = RecurrentGemmaRglru(RecurrentGemmaConfig(hidden_size=8, lru_width=8, num_attention_heads=2)).eval()
    for each in unit.parameters():
        nn.init.normal_(each)
    return unit


@torch.no_grad()
def test_what_sets_states_of_its_modules_is_not_replayed() -> None:
    ours, theirs = recurrence(), recurrence()
    run, store = graphed(lambda module, **arguments: module(**arguments), ours, is_packed=False)
    for seed in range(4):
        x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
        given = {"activations": x, "position_ids": torch.ones(2, 3, dtype=torch.long)}
        assert torch.equal(run(**given), theirs(**given))
        assert torch.equal(ours.recurrent_states, theirs.recurrent_states)
    assert not store.recorded


@torch.no_grad()
def test_states_are_never_buffers_of_a_recording() -> None:
    def differ(module: Any, x: torch.Tensor) -> torch.Tensor:
        before, module.recurrent_states = module.recurrent_states, x
        return x if before is None else x - before

    run, store = graphed(differ, recurrence(), is_packed=False)
    for number in range(1, 5):
        assert torch.equal(run(x=torch.full((3, 6), float(number))), torch.ones(3, 6))
    assert not store.recorded


@torch.no_grad()
def test_what_only_sets_states_while_it_is_recorded_is_not_replayed() -> None:
    unit = recurrence()

    def lazily(module: Any, x: torch.Tensor) -> torch.Tensor:
        if module.recurrent_states is None:
            module.recurrent_states = x.sum(0)
            return x + module.recurrent_states
        return x - module.recurrent_states

    run, store = graphed(lazily, unit, is_packed=False)
    unit.recurrent_states = torch.ones(6)
    assert not run(x=torch.ones(3, 6)).any()
    for value in (2.0, 3.0):
        unit.recurrent_states = None
        assert torch.equal(run(x=torch.full((3, 6), value)), torch.full((3, 6), 4 * value))
        assert torch.equal(unit.recurrent_states, torch.full((6,), 3 * value))
    assert not store.recorded


@torch.no_grad()
def test_states_that_are_only_read_are_those_that_are_there() -> None:
    unit = recurrence()
    run, _ = graphed(lambda module, x: x + module.recurrent_states, unit, is_packed=False)
    x = torch.randn(3, 6)
    for number in (1, 2):
        unit.recurrent_states = torch.full((6,), float(number))
        for _ in range(3):
            assert torch.equal(run(x=x), x + number)
        assert counters()["test"].recordings == number


@torch.no_grad()
def test_the_least_recently_used_makes_room() -> None:
    run, store = graphed(lambda module, x: module(x), nn.Linear(6, 6), budget=2, is_packed=False)
    for length in (1, 2, 3):
        for _ in range(3):
            run(x=torch.randn(length, 6))
    assert len(store.recorded) == 2
    assert counters()["test"].recordings == 3


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_changes_of_the_module(mode: Any) -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).eval()
    run, _ = graphed(lambda module, x: module(x), module, is_packed=False)
    x = torch.randn(3, 6)

    def check(recordings: int) -> None:
        with mode():
            for _ in range(3):
                assert torch.equal(run(x=x), module(x))
        assert counters()["test"].recordings == recordings

    check(1)
    with torch.no_grad():
        module[0].weight.mul_(2)
    module[0].bias.data += 1
    check(1)  # Values that change in place are seen by the graph that there is.
    module[0].weight.data = torch.randn(6, 6)
    check(2)
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()}, assign=True)
    check(3)
    module.double().float()
    check(4)
    module[1] = nn.Linear(6, 6).eval()
    check(5)
    handle = module[1].register_forward_hook(lambda _, __, out: 3 * out)
    check(5)  # Its Python would be left out.
    handle.remove()
    check(6)
    module.train()
    check(6)
    module.eval()
    x = x.double()
    module.double()
    check(7)


class Scaled(nn.Module):
    """Reads plain attributes of each kind, as upstream's layers and adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.scale = 2.0
        self.scales = {"adapter": 3.0}
        self.active = ["adapter"]
        self.merged: set[str] = set()
        self.config = LlamaConfig(rms_norm_eps=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added = sum(self.scales[name] for name in self.active if name not in self.merged)
        return self.linear(x) * self.scale + added + self.config.rms_norm_eps


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "an attribute": lambda module: setattr(module, "scale", 0.5),
    "an entry of a dict": lambda module: module.scales.update(adapter=0.5),
    "an item of a list": lambda module: module.active.append("adapter"),
    "a member of a set": lambda module: module.merged.add("adapter"),
    "a field of a config": lambda module: setattr(module.config, "rms_norm_eps", 0.25),
    "a new attribute": lambda module: setattr(module, "forward", module.linear.forward),
    "the layout of a weight": lambda module: setattr(module.linear.weight, "data", module.linear.weight.data.t()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_what_a_forward_reads_is_not_replayed_once_it_changed(change: Callable[[Scaled], object]) -> None:
    module = Scaled()
    run, store = graphed(lambda module, x: module(x), module, is_packed=False)
    x = torch.randn(3, 6)
    for _ in range(3):
        run(x=x)
    (recorded,) = store.recorded.values()
    # What a GPU's graph would do: none of the module's Python runs.
    recorded.graph.run = recorded.output.clone
    before = run(x=x)
    change(module)
    assert not torch.equal(run(x=x), before)
    for _ in range(3):
        assert torch.equal(run(x=x), module(x))


@torch.no_grad()
def test_what_is_written_but_does_not_change_is_replayed() -> None:
    module = Scaled()
    run, _ = graphed(lambda module, x: module(x), module, is_packed=False)
    x = torch.randn(3, 6)
    for _ in range(8):
        # Another object of the same value.
        module.scale = float(f"{2}.0")
        module.scales["adapter"] = float(f"{3}.0")
        assert torch.equal(run(x=x), module(x))
    assert counters()["test"].recordings == 1


@torch.no_grad()
def test_a_familiar_call_is_replayed_without_being_described(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, ours, _ = llama(tiny)
    for _ in range(3):
        ours(IDS, use_cache=False)
    described: list[Any] = []
    variant = Contract.variant
    monkeypatch.setattr(Contract, "variant", lambda *given: described.append(given) or variant(*given))
    for change, count in (
        (lambda: None, 0),
        (lambda: ours.model.norm.weight.mul_(2) + upstream.model.norm.weight.mul_(2), 0),
        (lambda: [setattr(each.model.norm, "variance_epsilon", 0.5) for each in (ours, upstream)], 1),
    ):
        change()
        described.clear()
        logits = ours(IDS, use_cache=False).logits
        assert torch.equal(logits, upstream(IDS, use_cache=False).logits)
        assert len(described) == count
    # Another shape, mode or kind of argument isn't one that was seen.
    described.clear()
    ours(IDS[:1], use_cache=False)
    with torch.inference_mode():
        ours(IDS, use_cache=False)
    ours(IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
    assert len(described) == 3


def test_gradients_are_never_replayed() -> None:
    run, store = graphed(lambda module, x: module(x), nn.Linear(6, 6), is_packed=False)
    for _ in range(3):
        assert run(x=torch.randn(3, 6)).requires_grad
    assert not store.recorded


@torch.no_grad()
def test_decoding_with_a_static_cache(tiny: Any) -> None:
    upstream, ours, store = llama(tiny)
    caches = [StaticCache(config=upstream.config, max_cache_len=32) for _ in range(2)]
    for step in range(6):
        ids = IDS if step == 0 else IDS[:, step : step + 1]
        mask = torch.ones(2, 1, ids.shape[1], 32, dtype=torch.bool).tril(9 * (step > 0) + step - (step > 0))
        kwargs = {"position_ids": torch.arange(ids.shape[1])[None] + (8 + step if step else 0), "attention_mask": mask}
        theirs, mine = (m(ids, past_key_values=c, **kwargs) for m, c in zip((upstream, ours), caches, strict=True))
        if step == 2:
            # The fake recorder runs what it records; a real one doesn't. So this step was made twice.
            for cache in caches[1:]:
                for layer in cache.layers:
                    layer.cumulative_length.sub_(1)
            continue
        torch.testing.assert_close(mine.logits, theirs.logits, rtol=0.0, atol=1e-5)
        assert mine.past_key_values is caches[1]
    assert counters()["llama.decoder"].replays >= 3
    assert len(store.recorded) == 1


@torch.no_grad()
def test_a_growing_cache_is_not_replayed(tiny: Any) -> None:
    upstream, ours, store = llama(tiny)
    caches = [DynamicCache() for _ in range(2)]
    for step in range(4):
        ids = IDS[:, : 9 if step == 0 else 1]
        theirs, mine = (m(ids, past_key_values=c) for m, c in zip((upstream, ours), caches, strict=True))
        torch.testing.assert_close(mine.logits, theirs.logits, rtol=0.0, atol=1e-6)
    assert not store.recorded
    assert counters()["llama.decoder"].replays == 0


@torch.no_grad()
def test_models_have_their_own_graphs(tiny: Any) -> None:
    upstream, ours, store = llama(tiny)
    for _ in range(3):
        assert torch.equal(ours(IDS, use_cache=False).logits, upstream(IDS, use_cache=False).logits)
    other = copy.deepcopy(ours)
    assert len(store.recorded) == 1
    assert not with_graphs(other).recorded
    other.model.norm.weight.mul_(2)
    for _ in range(3):
        assert not torch.equal(other(IDS, use_cache=False).logits, upstream(IDS, use_cache=False).logits)
        assert torch.equal(ours(IDS, use_cache=False).logits, upstream(IDS, use_cache=False).logits)


@torch.no_grad()
def test_the_option(tiny: Any) -> None:
    with options(backend="eager", cuda_graphs=False):
        ours = tiny.LlamaForCausalLM(tiny.llama_config()).eval()
    store = with_graphs(ours)
    for _ in range(3):
        ours(IDS, use_cache=False)
    assert not store.recorded


@pytest.mark.parametrize("tokens", [60, MAX_TOKENS + 4])
def test_buffers_are_of_the_callers_kind(tokens: int) -> None:
    kinds = set()

    def seen(module: nn.Module, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        kinds.add((arguments["x"].is_inference(), arguments["cu_seqlens"].is_inference()))
        return encoder(module, **arguments)

    run, store = graphed(seen, nn.Linear(6, 6))
    normal = packed(tokens)
    with torch.inference_mode():
        for _ in range(4):
            run(**normal | {"x": torch.randn(tokens, 6)})
    assert len(store.recorded) == 1
    assert kinds == {(True, False)}
