"""How often regions compile: once for whatever changes from call to call, and never where nobody asked for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import run_python, run_vgen
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BeitConfig, BeitModel, DynamicCache, StaticCache

import vgen.runtime as runtime

GRIDS: dict[str, tiny.Grid] = {
    "one small image": [(1, 4, 4)],
    "one image, not square": [(1, 8, 6)],
    "two images": [(1, 4, 4), (1, 6, 8)],
    "a video": [(2, 4, 6)],
    "one large image": [(1, 10, 12)],
    "three images": [(1, 4, 8), (1, 8, 4), (1, 6, 6)],
    "a longer video": [(3, 8, 8)],
    "a strip": [(1, 16, 4)],
}
LENGTHS = (9, 17, 5, 16)
WINDOWED = ["sliding_attention", "full_attention"] * 3
BY_INDEX = {"scale_attn_by_inverse_layer_idx": True}
TWELVE = (
    "arcee",
    "cohere",
    "gemma",
    "gemma2",
    "granite",
    "mistral",
    "olmo2",
    "phi3",
    "qwen3",
    "smollm3",
    "stablelm",
    "starcoder2",
)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_an_encoder_compiles_once_for_eight_inputs(backend: str) -> None:
    upstream, generated = tiny.pair("qwen2_5_vl", compile_mm_encoder=True, backend=backend)
    for name, grid in GRIDS.items():
        pixels, grid_thw = tiny.patches(grid)
        expected = upstream.model.visual(pixels, grid_thw=grid_thw)
        found = generated.model.visual(pixels, grid_thw=grid_thw)
        for field in ("last_hidden_state", "pooler_output"):
            if backend == "eager":
                assert torch.equal(found[field], expected[field]), name
            torch.testing.assert_close(found[field], expected[field], rtol=0.0, atol=1e-5)
    counted = runtime.counters()["qwen2_5_vl.encoder"]
    assert (counted.calls, counted.compiles, counted.variants) == (8, 1, 1)
    if backend == "eager":
        # Inductor is handed a graph twice: it has Dynamo start again, with integers as inputs.
        assert counted.graphs == 1
    assert not counted.fallbacks


@torch.no_grad()
def test_an_encoder_of_plain_images_compiles_once_for_all_counts() -> None:
    upstream, generated = tiny.pair("internvl", compile_mm_encoder=True)
    for images in (2, 3, 7, 5):
        pixels = torch.randn(images, 3, 28, 28)
        expected = upstream.model.get_image_features(pixels).pooler_output
        assert torch.equal(generated.model.get_image_features(pixels).pooler_output, expected)
    counted = runtime.counters()["internvl.encoder"]
    assert (counted.calls, counted.compiles, counted.graphs) == (4, 1, 1)
    assert not counted.fallbacks


@torch.no_grad()
def test_images_of_the_size_of_the_config_have_that_size_in_the_graph() -> None:
    shapes: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        placeholders = graph.graph.find_nodes(op="placeholder")
        (images,) = (node.meta["example_value"] for node in placeholders if "pixel_values" in node.name)
        shapes.append([isinstance(each, int) for each in images.shape])
        return graph

    upstream, generated = tiny.pair("internvl", compile_mm_encoder=True, backend=backend)
    own, other = (28, 28), (42, 56)
    for count, size in ((2, own), (3, other), (5, own), (2, (56, 70))):
        pixels = torch.randn(count, 3, *size)
        expected = upstream.model.vision_tower(pixels).last_hidden_state
        assert torch.equal(generated.model.vision_tower(pixels).last_hidden_state, expected)
    assert shapes == [[False, True, True, True], [False, True, False, False]]
    counted = runtime.counters()["internvl.encoder"]
    assert (counted.compiles, counted.variants, dict(counted.fallbacks)) == (2, 2, {})


@pytest.mark.parametrize("batch", [2, 1])
def test_a_decoder_compiles_twice_at_most_for_each_kind_of_cache(batch: int) -> None:
    upstream, generated = tiny.pair("qwen2_5_vl", compile_mm_encoder=True)
    before = 0
    for cache in (None, "static"):
        for length in LENGTHS:
            ids = tiny.text(batch, length, seed=length)
            options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": cache}
            expected = upstream.generate(ids, **options)
            assert expected.shape[1] > length + 1
            assert torch.equal(generated.generate(ids, **options), expected), (cache, length)
        counted = runtime.counters()["qwen2_5_vl.decoder"]
        assert 1 <= counted.compiles - before <= 2, cache
        before = counted.compiles
    assert counted.graphs == counted.compiles
    assert counted.calls >= 2 * 8 * len(LENGTHS)
    assert tiny.fallbacks() == {}
    assert "qwen2_5_vl.encoder" not in runtime.counters(), "there was no image"


def test_a_decoder_compiles_twice_at_most_with_inductor_too() -> None:
    upstream, generated = tiny.pair("llama", changes={"num_hidden_layers": 1}, backend="inductor")
    for length in (5, 9):
        ids = tiny.text(1, length)
        options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        assert torch.equal(generated.generate(ids, **options), upstream.generate(ids, **options))
    assert tiny.fallbacks() == {}
    assert tiny.compiles()["llama.decoder"] <= 2


@torch.no_grad()
@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_a_text_model_compiles_once_for_all_lengths(model: str) -> None:
    upstream, generated = tiny.pair(model)
    for length in (9, 17, 5, 33, 16, 2):
        ids = tiny.text(3, length)
        assert torch.equal(generated(ids).logits, upstream(ids).logits)
    assert tiny.compiles() == {f"{model}.decoder": 1}
    assert tiny.fallbacks() == {}


@torch.no_grad()
def test_without_asking_the_encoder_compiles_nothing() -> None:
    upstream, generated = tiny.pair("qwen2_5_vl")
    inputs = tiny.prompt("qwen2_5_vl")
    assert torch.equal(generated(**inputs).logits, upstream(**inputs).logits)
    assert tiny.compiles() == {"qwen2_5_vl.decoder": 1}


@torch.no_grad()
def test_with_compilation_off_nothing_compiles() -> None:
    for model in ("qwen2_5_vl", "llama"):
        upstream, generated = tiny.pair(model, compile=False, compile_mm_encoder=True)
        inputs = tiny.prompt(model)
        assert torch.equal(generated(**inputs).logits, upstream(**inputs).logits)
    assert all(not (each.compiles or each.graphs or each.variants) for each in runtime.counters().values())


@torch.no_grad()
def test_a_compiled_and_an_uncompiled_model_live_in_one_process() -> None:
    upstream, compiled = tiny.pair("llama")
    _, plain = tiny.pair("llama", compile=False)
    ids = tiny.text(2, 8)
    expected = upstream(ids).logits
    assert torch.equal(plain(ids).logits, expected)
    assert sum(tiny.compiles().values()) == 0
    assert torch.equal(compiled(ids).logits, expected)
    assert tiny.compiles() == {"llama.decoder": 1}
    assert torch.equal(plain(ids).logits, expected)
    assert torch.equal(upstream(ids).logits, expected)
    assert tiny.compiles() == {"llama.decoder": 1}
    assert (compiled.vgen_options.compile, plain.vgen_options.compile) == (True, False)
    assert not hasattr(upstream, "vgen_options")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dotted name of a folder with qwen2_5_vl built block by block."""
    root = tmp_path_factory.mktemp("blocks")
    done = run_vgen("build", "qwen2_5_vl", "--granularity", "block", "--out", "block_models", cwd=root)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(root))
    return "block_models"


@torch.no_grad()
def test_repeated_layers_share_their_compiles_and_equal_the_whole(blocks: str) -> None:
    depth = {
        "vision_config": tiny.SPECIFIC["qwen2_5_vl"]["vision_config"] | {"depth": 5, "fullatt_block_indexes": [1]}
    }
    upstream, whole = tiny.pair("qwen2_5_vl", changes=depth, compile_mm_encoder=True)
    _, split = tiny.pair("qwen2_5_vl", blocks, changes=depth, compile_mm_encoder=True)
    for grid in GRIDS.values():
        pixels, grid_thw = tiny.patches(grid)
        expected = upstream.model.visual(pixels, grid_thw=grid_thw).pooler_output
        assert torch.equal(split.model.visual(pixels, grid_thw=grid_thw).pooler_output, expected)
        assert torch.equal(whole.model.visual(pixels, grid_thw=grid_thw).pooler_output, expected)
    counted = runtime.counters()
    assert set(counted) == {"qwen2_5_vl.encoder", "qwen2_5_vl.encoder.block"}
    assert counted["qwen2_5_vl.encoder.block"].calls == 5 * len(GRIDS)
    # The input of the first layer is a view, and those of the others aren't.
    assert counted["qwen2_5_vl.encoder.block"].compiles == 1
    assert counted["qwen2_5_vl.encoder.block"].variants == 1
    assert counted["qwen2_5_vl.encoder"].compiles == 1
    assert tiny.fallbacks() == {}
    inputs = tiny.prompt("qwen2_5_vl")
    assert torch.equal(split(**inputs).logits, upstream(**inputs).logits)
    assert tiny.fallbacks() == {}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["static", "growing"])
@pytest.mark.parametrize(
    ("model", "changes", "kinds"),
    [
        ("llama", {}, 1),
        ("gemma3_text", {"sliding_window": 16, "layer_types": WINDOWED}, 2),
        ("gpt2", {}, 1),
        ("gpt2", BY_INDEX, 6),
    ],
)
def test_layers_of_a_kind_share_what_is_compiled_with_a_cache(
    decoders: str, model: str, changes: dict[str, Any], kinds: int, kind: str
) -> None:
    """A layer asks the cache for its own index. Where it computes with it, as GPT-2's may, each is a kind of its own."""
    config = CONFIG_MAPPING[model](**tiny.TEXT | {"num_hidden_layers": len(WINDOWED), "head_dim": 16} | changes)
    upstream = AutoModelForCausalLM.from_config(config).eval()
    with runtime.options(backend="eager"):
        generated = tiny.generated_class(model.removesuffix("_text"), decoders, type(upstream).__name__)(config).eval()
    generated.load_state_dict(upstream.state_dict())
    ids = tiny.text(2, 5)

    def tokens(model: Any) -> torch.Tensor:
        cache = StaticCache(config=config, max_cache_len=32) if kind == "static" else DynamicCache(config=config)
        found: torch.Tensor = model.generate(ids, max_new_tokens=6, do_sample=False, past_key_values=cache)
        return found

    assert torch.equal(tokens(generated), tokens(upstream))
    assert tiny.fallbacks() == {}
    counted = runtime.counters()[f"{model.removesuffix('_text')}.decoder.block"]
    assert counted.calls == 6 * len(WINDOWED)
    assert counted.compiles <= 2 * kinds, "one for the prompt and one for a token"


@torch.no_grad()
def test_layers_that_differ_in_a_number_share_a_graph_that_takes_it(decoders: str) -> None:
    """All but the first, which drops no path: the rate at which others would in training grows with depth."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
    config = BeitConfig(**sizes, num_hidden_layers=5, drop_path_rate=0.3)
    upstream = BeitModel(config).eval()
    with runtime.options(backend="eager", compile_mm_encoder=True):
        generated = tiny.generated_class("beit", decoders, "BeitModel")(config).eval()
    generated.load_state_dict(upstream.state_dict())
    rates = {part.drop_prob for part in generated.modules() if hasattr(part, "drop_prob")}
    assert len(rates) == 4
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(generated(images).last_hidden_state, upstream(images).last_hidden_state)
    counted = runtime.counters()["beit.encoder.block"]
    assert (counted.calls, counted.variants, counted.compiles) == (5, 2, 2)
    assert tiny.fallbacks() == {}


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dotted name of a folder with three text models and an image encoder built block by block."""
    root = tmp_path_factory.mktemp("decoders")
    models = ("llama", "gemma3", "gpt2", "beit")
    done = run_vgen("build", *models, "--granularity", "block", "--out", "block_decoders", cwd=root)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(root))
    return "block_decoders"


TWELVE_IN_ONE = """
import importlib, json, sys
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
import vgen.runtime as runtime

text, names = json.loads(sys.argv[1]), sys.argv[2:]
torch.set_num_threads(1)
ids = torch.randint(3, 140, (2, 11))
equal, codes = {}, {}
for name in names:
    torch.manual_seed(0)
    upstream = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**text)).eval()
    found = getattr(importlib.import_module(f"zoo.{name}"), type(upstream).__name__)
    with runtime.options(backend="eager"):
        generated = found(CONFIG_MAPPING[name](**text)).eval()
    generated.load_state_dict(upstream.state_dict())
    code = type(generated.get_decoder()).forward.__code__
    codes[id(code)] = code
    with torch.no_grad():
        equal[name] = torch.equal(generated(ids).logits, upstream(ids).logits)
counted = {tag: [each.calls, each.compiles, each.graphs, dict(each.fallbacks)] for tag, each in runtime.counters().items()}
print(json.dumps({"equal": equal, "counters": counted, "codes": len(codes)}))
"""


def test_twelve_models_that_nobody_looked_at_compile_in_one_process(tmp_path: Path) -> None:
    built = run_vgen("build", *TWELVE, "--out", "zoo", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    done = run_python(["-c", TWELVE_IN_ONE, json.dumps(tiny.TEXT), *TWELVE], cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["equal"] == dict.fromkeys(TWELVE, True)
    assert result["counters"] == {f"{model}.decoder": [1, 1, 1, {}] for model in TWELVE}
    assert result["codes"] == len(TWELVE), "each has a code object of its own"


UNTOUCHED = """
import importlib, sys
import torch
import tiny
import transformers
import vgen.runtime as runtime

FAMILIES = ("qwen2_5_vl", "internvl", "qwen2", "llama")
torch.set_num_threads(1)

def attributes():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and ".modeling_" in name or name == "transformers.modeling_utils":
            for key, value in list(vars(module).items()):
                found[name, key] = value
                if isinstance(value, type) and value.__module__ == name:
                    found[name, key, "__bases__"] = value.__bases__
                    found.update({(name, key, attribute): each for attribute, each in list(vars(value).items())})
    return found

for family in FAMILIES:
    model = getattr(transformers, tiny.ENTRIES[family])(tiny.config(family)).eval()
    model.generate(**tiny.prompt(family), max_new_tokens=2, do_sample=False)
before = attributes()
for family in FAMILIES:
    upstream, generated = tiny.pair(family, compile_mm_encoder=family in ("qwen2_5_vl", "internvl"))
    generated.generate(**tiny.prompt(family), max_new_tokens=2, do_sample=False)
    generated.get_decoder()
    generated._can_set_experts_implementation(), generated.is_custom_code()
after = attributes()
assert all(each.compiles for each in runtime.counters().values()) and len(runtime.counters()) == 5, runtime.counters()
assert len(before) > 1000
changed = [key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)]
changed = [key for key in changed if key[-1] not in ("__bases__", "__abstractmethods__") or before.get(key) != after.get(key)]
print("changed:", sorted(map(str, changed)))
"""


def test_upstreams_classes_stay_as_they_are() -> None:
    tests = str(Path(tiny.__file__).parent)
    done = run_python(["-c", f"import sys; sys.path.insert(0, {tests!r})\n{UNTOUCHED}"], timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "changed: []"
