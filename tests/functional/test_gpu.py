"""On a GPU: graphs replay what eager computes, whatever happens to streams, modes and weights between two calls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from conftest import run_vgen

import vgen.runtime as runtime
from vgen.runtime.attention import _packed_flash, _segments
from vgen.runtime.decode_passes import attend_few_queries, multiply_one_row

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA runs on")

GRIDS: dict[str, tiny.Grid] = {
    "one small image": [(1, 4, 4)],
    "two images": [(1, 4, 4), (1, 6, 8)],
    "a video": [(2, 4, 6)],
    "sixty-four tokens": [(1, 8, 8)],
    "a larger image": [(1, 16, 20)],
}


def pair(model: str = "qwen2_5_vl", **options: Any) -> tuple[Any, Any]:
    upstream, generated = tiny.pair(model, **options)
    return upstream.cuda(), generated.cuda()


def inputs(grid: tiny.Grid, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, grid_thw = tiny.patches(grid, seed)
    return pixels.cuda().to(torch.bfloat16), grid_thw.cuda()


def check(upstream: Any, generated: Any, grid: tiny.Grid, seed: int = 2) -> None:
    pixels, grid_thw = inputs(grid, seed)
    expected, found = (each(pixels, grid_thw=grid_thw) for each in (upstream, generated))
    for field in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(found[field], expected[field], rtol=5e-2, atol=5e-2)


@pytest.fixture
def visual() -> tuple[Any, Any]:
    """In half precision: in fp32, packed attention is a loop over segments, which reads lengths on the host."""
    upstream, generated = (each.to(torch.bfloat16) for each in pair(compile_mm_encoder=True))
    return upstream.model.visual, generated.model.visual


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_encoder_graphs(visual: tuple[Any, Any], mode: Any) -> None:
    with mode():
        for seed in range(3):
            for grid in GRIDS.values():
                check(*visual, grid, seed)
    count = runtime.counters()["qwen2_5_vl.encoder"]
    assert count.replays > 0
    assert (count.compiles, count.recordings) <= (1, len(GRIDS))
    assert not count.fallbacks


@torch.no_grad()
def test_outputs_stay(visual: tuple[Any, Any]) -> None:
    _, generated = visual
    made = []
    for seed in range(5):
        pixels, grid_thw = inputs(GRIDS["two images"], seed)
        found = generated(pixels, grid_thw=grid_thw).pooler_output
        made.append((found, found.clone()))
    assert all(torch.equal(*each) for each in made)
    assert not torch.equal(made[-1][0], made[-2][0])


@torch.no_grad()
def test_streams(visual: tuple[Any, Any]) -> None:
    upstream, generated = visual
    for seed in range(3):
        check(upstream, generated, GRIDS["two images"], seed)
    streams = [torch.cuda.Stream() for _ in range(3)]
    pixels = [inputs(GRIDS["two images"], seed)[0] for seed in range(12)]
    grid_thw = inputs(GRIDS["two images"])[1]
    torch.cuda.synchronize()
    found = []
    for index, each in enumerate(pixels):
        with torch.cuda.stream(streams[index % 3]):
            found.append(generated(each, grid_thw=grid_thw).pooler_output)
    torch.cuda.synchronize()
    for each, output in zip(pixels, found, strict=True):
        torch.testing.assert_close(output, upstream(each, grid_thw=grid_thw).pooler_output, rtol=5e-2, atol=5e-2)
    assert runtime.counters()["qwen2_5_vl.encoder"].replays >= 12


@torch.no_grad()
def test_weights_change(visual: tuple[Any, Any]) -> None:
    upstream, generated = visual
    grid = GRIDS["a video"]

    def both(change: Any) -> None:
        for each in visual:
            change(each)
        for seed in range(4):
            check(upstream, generated, grid, seed)

    both(lambda each: None)
    both(lambda each: each.blocks[0].mlp.down_proj.weight.mul_(1.5))
    both(lambda each: each.blocks[0].attn.qkv.weight.data.add_(0.01))
    both(lambda each: setattr(each.blocks[1].mlp.up_proj.weight, "data", each.blocks[1].mlp.up_proj.weight.data * 0.5))
    state = {name: value + 0.01 for name, value in upstream.state_dict().items()}
    both(lambda each: each.load_state_dict(state, assign=True))
    both(lambda each: each.cpu().cuda())


@torch.no_grad()
def test_two_models(visual: tuple[Any, Any]) -> None:
    upstream, generated = visual
    other = copy.deepcopy(generated)
    other.blocks[0].norm1.weight.mul_(2)
    changed = copy.deepcopy(upstream)
    changed.blocks[0].norm1.weight.mul_(2)
    for seed in range(4):
        check(upstream, generated, GRIDS["two images"], seed)
        check(changed, other, GRIDS["two images"], seed)


@pytest.mark.parametrize("model", ["llama", "qwen2_5_vl"])
@pytest.mark.parametrize("rows", [1, 3])
def test_generate_with_a_static_cache(model: str, rows: int) -> None:
    upstream, generated = pair(model)
    for length in (9, 5, 9):
        ids = tiny.text(rows, length, seed=length).cuda()
        mask = torch.ones_like(ids)
        mask[0, :2] = 0 if rows > 1 else 1
        given = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        expected = upstream.generate(ids, **given, cache_implementation="static", disable_compile=True)
        assert torch.equal(generated.generate(ids, **given, cache_implementation="static"), expected)
        assert torch.equal(generated.generate(ids, **given), upstream.generate(ids, **given))
    count = runtime.counters()[f"{model}.decoder"]
    assert count.replays >= 20
    assert not count.fallbacks


@pytest.mark.parametrize("rows", [1, 3])
def test_steps_that_run_ahead_stop_where_upstreams_do(rows: int) -> None:
    upstream, generated = pair("llama")
    ids = tiny.text(rows, 9).cuda()
    given = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}
    free = upstream.generate(ids, **given, disable_compile=True)
    for place in (9, 12, 20, 27):
        # The last row's token there ends all rows: some of them before it, with padding after it.
        ends = {*free[:, place].tolist()}
        expected = upstream.generate(ids, **given, eos_token_id=[*ends], disable_compile=True)
        for _ in range(3):
            assert torch.equal(generated.generate(ids, **given, eos_token_id=[*ends]), expected)
    for tokens in (1, 2, 5):
        expected = upstream.generate(ids, **given | {"max_new_tokens": tokens}, disable_compile=True)
        assert torch.equal(generated.generate(ids, **given | {"max_new_tokens": tokens}), expected)
    drawn = []
    for model in (upstream, generated):
        torch.manual_seed(3)
        model.generate(ids, **given, eos_token_id=[*ends], disable_compile=model is upstream)
        drawn.append(torch.rand(3, device="cuda"))
    assert torch.equal(*drawn)
    assert not runtime.counters()["llama.decoder"].fallbacks


def test_without_graphs() -> None:
    _, generated = pair("llama", cuda_graphs=False)
    with torch.no_grad():
        for _ in range(3):
            generated(tiny.text(1, 9).cuda(), use_cache=False)
    assert runtime.counters()["llama.decoder"].recordings == 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("longest", "lengths"), [(64, [64, 60, 0, 0, 7]), (128, [128, 1]), (700, [700, 300]), (2100, [2100])]
)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_packed_kernels(longest: int, lengths: list[int], head_dim: int) -> None:
    qkv = torch.randn(sum(lengths), 3, 4, head_dim, device="cuda", dtype=torch.bfloat16)
    cu_seqlens = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    found = _packed_flash(*qkv.unbind(1), cu_seqlens, longest, None)
    wide = [each.transpose(0, 1)[None].float() for each in qkv.unbind(1)]
    expected = _segments(*wide, [each for each in lengths if each], None, False)[0]
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


@torch.no_grad()
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("columns", [2048, 1000])
def test_products_of_one_row(columns: int, has_bias: bool) -> None:
    weights = [torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) for rows in (2048, 256, 12)]
    biases = [torch.randn(each.shape[0], device="cuda", dtype=torch.bfloat16) for each in weights]
    x = torch.randn(1, 1, columns, device="cuda", dtype=torch.bfloat16)
    found = multiply_one_row(x, weights, biases if has_bias else [])
    for weight, bias, each in zip(weights, biases, found, strict=True):
        expected = torch.nn.functional.linear(x.float(), weight.float(), bias.float() if has_bias else None)
        torch.testing.assert_close(each.float(), expected, rtol=1e-2, atol=1e-1)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 2, 8, 128, 640), (3, 4, 1, 64, 77), (1, 1, 4, 80, 3000)])
@pytest.mark.parametrize("kind", ["bool", "added"])
def test_attention_of_few_queries(shape: tuple[int, ...], kind: str) -> None:
    batch, heads, queries, head_dim, length = shape
    query = torch.randn(batch, heads, queries, head_dim, device="cuda", dtype=torch.bfloat16)
    key, value = (torch.randn(batch, heads, length, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seen = torch.arange(length, device="cuda").view(1, 1, 1, -1) < length // 2 + 1
    added = torch.zeros_like(seen, dtype=torch.bfloat16).masked_fill(~seen, float("-inf"))
    found = attend_few_queries(query, key, value, seen if kind == "bool" else added, 0.1)
    wide = (each.float() for each in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=seen, scale=0.1)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 3])
def test_steps_through_inductor(rows: int) -> None:
    """Logits of steps with a static cache, in half precision: all that is done for a GPU is in them."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import StaticCache

    upstream, generated = (each.to(torch.bfloat16) for each in pair("llama", backend="inductor"))
    ids = tiny.text(rows, 24).cuda()
    logits = []
    for model in (upstream, generated):
        cache = StaticCache(config=model.config, max_cache_len=32)
        cuts = [(0, 9), *((at, at + 1) for at in range(9, 24))]
        steps = [model(ids[:, a:b], past_key_values=cache, use_cache=True).logits for a, b in cuts[:-1]]
        with profile(activities=[ProfilerActivity.CUDA]) as recorder:
            steps.append(model(ids[:, slice(*cuts[-1])], past_key_values=cache, use_cache=True).logits)
        logits.append(torch.cat(steps, dim=1))
    torch.testing.assert_close(logits[1], logits[0], rtol=5e-2, atol=5e-2)
    count = runtime.counters()["llama.decoder"]
    assert count.replays >= 12
    assert not count.fallbacks
    kernels = {event.key for event in recorder.key_averages()}
    assert "_part_kernel" in kernels
    assert ("_row_kernel" in kernels) is (rows == 1)


@torch.no_grad()
def test_aligned_weights_are_the_same_weights(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    from vgen.runtime.weights import align_rows

    upstream, _ = pair(
        changes={"vision_config": tiny.SPECIFIC["qwen2_5_vl"]["vision_config"] | {"intermediate_size": 44}}
    )
    visual = upstream.model.visual.to(torch.bfloat16)
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    align_rows(visual)
    weight = visual.blocks[0].mlp.down_proj.weight
    assert weight.stride() == (48, 1)
    assert all(torch.equal(value, before[name]) for name, value in visual.state_dict().items())
    upstream.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    (written,) = (value for name, value in saved.items() if name.endswith("blocks.0.mlp.down_proj.weight"))
    assert torch.equal(written.cuda(), weight)
    # Somebody holds the memory of the other: it stays where it is.
    other = torch.nn.Linear(44, 8, device="cuda", dtype=torch.bfloat16)
    held = other.weight.data
    align_rows(other)
    assert other.weight.data_ptr() == held.data_ptr()


@torch.no_grad()
def test_layers_that_share_a_graph_are_laid_out_alike(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_vgen("build", "qwen2_5_vl", "--granularity", "block", "--out", "aligned_blocks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    changes = {"vision_config": tiny.SPECIFIC["qwen2_5_vl"]["vision_config"] | {"intermediate_size": 44, "depth": 4}}
    made = tiny.pair("qwen2_5_vl", "aligned_blocks", changes=changes, compile_mm_encoder=True, backend="inductor")
    upstream, generated = (each.cuda().to(torch.bfloat16).model.visual for each in made)
    for grid in GRIDS.values():
        check(upstream, generated, grid)
    assert {block.mlp.down_proj.weight.stride() for block in generated.blocks} == {(48, 1)}
    count = runtime.counters()["qwen2_5_vl.encoder.block"]
    assert (count.compiles, count.variants) == (1, 1)
    assert not count.fallbacks
