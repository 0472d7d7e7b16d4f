"""Models outside of Transformers: what is built from their files computes, loads and saves what the files themselves do."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from conftest import run_vgen

import vgen.runtime as runtime

OUTSIDE = Path(__file__).parents[1] / "outside"
PATHS = ("theirs/chat", "theirs/single/modeling_ripple.py", "theirs/single/modeling_tessera.py")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's project: the models' files, importable as `theirs`, and the packages that the command line made of them."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(OUTSIDE, root / "theirs")
    done = run_vgen("build", *PATHS, "--out", "outside_models", cwd=root)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(root))
    yield root
    sys.path.remove(str(root))


@pytest.fixture(scope="module")
def chat(project: Path) -> Any:
    """The chat model's original classes."""
    modeling = importlib.import_module("theirs.chat.modeling_internvl_chat")
    return SimpleNamespace(
        model=modeling.InternVLChatModel,
        vision=modeling.InternVisionModel,
        config=importlib.import_module("theirs.chat.configuration_internvl_chat").InternVLChatConfig,
    )


def chat_config(chat: Any, architecture: str) -> Any:
    fields = json.loads((OUTSIDE / "chat" / "config.json").read_text())
    llm = fields["llm_config"] | {"architectures": [architecture], "model_type": architecture[:-11].lower()}
    return chat.config(**fields | {"llm_config": llm})


def checkpoint(model: Any, folder: Path, *, code: Path = OUTSIDE / "chat") -> Path:
    """Weights, config and Python files in one folder, as people publish them."""
    model.save_pretrained(folder)
    for path in code.glob("*.py"):
        shutil.copy(path, folder)
    return folder


def prompt(images: int, words: int) -> dict[str, torch.Tensor]:
    row = [torch.cat([torch.full((4,), tiny.IMAGE), tiny.text(words, seed=index)]) for index in range(images)]
    ids = torch.cat(row).unsqueeze(0)
    pixels = torch.randn(images, 3, 28, 28, generator=torch.Generator().manual_seed(5))
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def forward(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs, image_flags=torch.ones(len(inputs["pixel_values"]), 1)).logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=["LlamaForCausalLM", "Qwen2ForCausalLM"])
def pair(
    chat: Any, project: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Any, Any]:
    """The original chat model, and the generated one as `load` makes it from its checkpoint."""
    torch.manual_seed(0)
    upstream = chat.model(chat_config(chat, request.param)).eval()
    folder = checkpoint(upstream, tmp_path_factory.mktemp("checkpoint"))
    generated = runtime.load(folder, generated="outside_models", backend="eager", compile_mm_encoder=True)
    for each in (upstream, generated):
        each.img_context_token_id = tiny.IMAGE
    return upstream, generated


@torch.no_grad()
def test_chat_is_bit_equal_for_every_number_of_images(pair: tuple[Any, Any]) -> None:
    upstream, generated = pair
    for images, words in ((2, 4), (3, 9), (5, 2), (7, 6), (2, 31)):
        inputs = prompt(images, words)
        assert torch.equal(forward(upstream, inputs), forward(generated, inputs))
    assert tiny.fallbacks() == {}
    decoder = "llama.decoder" if "Llama" in type(generated.language_model).__name__ else "qwen2.decoder"
    counted = runtime.counters()
    assert {tag: (each.compiles, each.graphs) for tag, each in counted.items()} == {
        "internvl_chat.encoder": (1, 1),
        decoder: (1, 1),
    }
    # PyTorch compiles a size of one apart.
    assert torch.equal(forward(upstream, prompt(1, 3)), forward(generated, prompt(1, 3)))
    assert runtime.counters()["internvl_chat.encoder"].compiles == 2


def test_chat_generates_the_same_tokens(pair: tuple[Any, Any]) -> None:
    upstream, generated = pair
    inputs = prompt(3, 5)
    arguments = {**inputs, "max_new_tokens": 8, "do_sample": False}
    expected = upstream.generate(**arguments)
    assert expected.shape == (1, 8)
    assert torch.equal(generated.generate(**arguments), expected)
    assert torch.equal(
        generated.extract_feature(inputs["pixel_values"]), upstream.extract_feature(inputs["pixel_values"])
    )
    assert tiny.fallbacks() == {}


def test_chat_has_the_same_gradients(pair: tuple[Any, Any]) -> None:
    inputs = prompt(2, 4)
    for each in pair:
        each.zero_grad(set_to_none=True)
        each(**inputs, image_flags=torch.ones(2, 1), labels=inputs["input_ids"]).loss.backward()
    for (name, one), (_, other) in zip(pair[0].named_parameters(), pair[1].named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            assert torch.equal(one.grad, other.grad), name


def test_chat_is_made_of_generated_classes(pair: tuple[Any, Any], chat: Any) -> None:
    upstream, generated = pair
    made = importlib.import_module("outside_models.internvl_chat")
    assert type(generated) is made.InternVLChatModel
    assert type(generated.vision_model) is made.InternVisionModel
    assert type(generated.language_model).__module__.startswith("vgen.generated.")
    assert isinstance(generated.language_model, type(upstream.language_model))
    assert list(generated.state_dict()) == list(upstream.state_dict())
    for question in ("is_custom_code", "_can_set_experts_implementation", "_can_set_attn_implementation"):
        assert getattr(generated, question)() is getattr(upstream, question)()
    # What was reviewed is what runs: the package's copy, nothing of the hub's dynamic modules.
    assert type(generated.config).__module__ == "outside_models.internvl_chat.upstream.configuration_internvl_chat"
    assert not [name for name in sys.modules if name.startswith("transformers_modules")]


def test_chat_takes_live_parts(chat: Any, project: Path) -> None:
    made = importlib.import_module("outside_models.internvl_chat")
    llama = importlib.import_module("vgen.generated.llama")
    config = chat_config(chat, "LlamaForCausalLM")
    with runtime.options(backend="eager", compile_mm_encoder=True):
        vision, language = made.InternVisionModel(config.vision_config), llama.LlamaForCausalLM(config.llm_config)
        whole = made.InternVLChatModel(config, vision_model=vision, language_model=language).eval()
    assert whole.vision_model is vision
    assert whole.language_model is language
    upstream = chat.model(config).eval()
    upstream.load_state_dict(whole.state_dict())
    upstream.img_context_token_id = whole.img_context_token_id = tiny.IMAGE
    with torch.no_grad():
        assert torch.equal(forward(whole, prompt(2, 4)), forward(upstream, prompt(2, 4)))
    assert tiny.fallbacks() == {}


def test_a_checkpoint_goes_there_and_back(pair: tuple[Any, Any], chat: Any, tmp_path: Path) -> None:
    upstream, generated = pair
    generated.save_pretrained(tmp_path / "ours")
    # It is whole: a checkpoint with the code that its config names.
    for path in (OUTSIDE / "chat").glob("*.py"):
        assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes()
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert saved["auto_map"] == json.loads((OUTSIDE / "chat" / "config.json").read_text())["auto_map"]
    assert saved["architectures"] == ["InternVLChatModel"]
    for back in (
        chat.model.from_pretrained(tmp_path / "ours"),
        type(generated).from_pretrained(tmp_path / "ours"),
        runtime.load(tmp_path / "ours", generated="outside_models", compile=False),
    ):
        for name, value in upstream.state_dict().items():
            assert torch.equal(back.state_dict()[name], value), name


def test_options_and_arguments_reach_the_model(pair: tuple[Any, Any], tmp_path: Path) -> None:
    folder = checkpoint(pair[0], tmp_path)
    loaded = runtime.load(
        folder, generated="outside_models", compile=False, dtype=torch.bfloat16, trust_remote_code=True
    )
    assert loaded.dtype == torch.bfloat16
    assert loaded.vgen_options == runtime.Options(compile=False)


def test_load_refuses_code_that_was_not_reviewed(pair: tuple[Any, Any], tmp_path: Path) -> None:
    folder = checkpoint(pair[0], tmp_path)
    path = folder / "modeling_intern_vit.py"
    path.write_text(path.read_text() + "\nraise SystemExit('ran')\n")
    with pytest.raises(runtime.UpstreamChangedError) as error:
        runtime.load(folder, generated="outside_models")
    for part in ("outside_models.internvl_chat", "modeling_intern_vit.py", f"`vgen build {folder}`"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(runtime.UpstreamChangedError, match=r"modeling_intern_vit\.py"):
        runtime.load(folder, generated="outside_models")


def test_load_says_what_builds_a_package(pair: tuple[Any, Any], tmp_path: Path) -> None:
    folder = checkpoint(pair[0], tmp_path)
    with pytest.raises(runtime.ModelNotBuiltError) as error:
        runtime.load(folder)
    assert f"`vgen build {folder}`" in str(error.value)
    assert "modeling_internvl_chat.py" in str(error.value)


def test_load_of_code_in_another_repository(pair: tuple[Any, Any], tmp_path: Path) -> None:
    folder = checkpoint(pair[0], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "someone/else--modeling_internvl_chat.InternVLChatModel"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(runtime.ArchitectureError, match="someone/else--"):
        runtime.load(folder, generated="outside_models")


def test_a_copy_that_was_changed_is_not_run(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(project / "outside_models" / "tessera", tmp_path / "changed" / "tessera")
    path = tmp_path / "changed" / "tessera" / "upstream" / "modeling_tessera.py"
    path.write_text(path.read_text() + "\nraise SystemExit('ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(runtime.UpstreamChangedError) as error:
        importlib.import_module("changed.tessera")
    assert "modeling_tessera.py (is different)" in str(error.value)
    path.unlink()
    with pytest.raises(runtime.UpstreamChangedError, match="is gone"):
        importlib.import_module("changed.tessera")


def single(project: Path, model: str, name: str, **fields: Any) -> tuple[Any, Any]:
    """The original class of a single file, and the generated one, with the same weights."""
    theirs = importlib.import_module(f"theirs.single.modeling_{model}")
    ours = importlib.import_module(f"outside_models.{model}")
    config = getattr(theirs, f"{model.capitalize()}Config")(**fields)
    torch.manual_seed(0)
    upstream = getattr(theirs, name)(config).eval()
    with runtime.options(backend="eager", compile_mm_encoder=True):
        generated = getattr(ours, name)(config).eval()
    generated.load_state_dict(upstream.state_dict())
    return upstream, generated


@pytest.mark.parametrize("name", ["RippleForCausalLM", "RippleBaseline"])
def test_a_text_decoder_in_one_file(project: Path, name: str) -> None:
    upstream, generated = single(project, "ripple", name, **tiny.TEXT | {"num_key_value_heads": 4})
    for shape in ((2, 11), (3, 7), (2, 29)):
        ids = tiny.text(*shape)
        with torch.no_grad():
            assert torch.equal(upstream(ids).logits, generated(ids).logits)
    ids = tiny.text(2, 9)
    arguments = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(generated.generate(ids, **arguments), upstream.generate(ids, **arguments))
    assert tiny.fallbacks() == {}
    tag = "ripple.decoder" if name == "RippleForCausalLM" else "llama.decoder"
    assert set(runtime.counters()) == {tag}, "Llama's own model below the head is vgen's package of it"
    assert isinstance(generated.model, runtime.Compiled)
    assert generated.model.layers[0].__class__.__name__ == upstream.model.layers[0].__class__.__name__


@torch.no_grad()
def test_a_vision_encoder_in_one_file(project: Path, tmp_path: Path) -> None:
    upstream, generated = single(project, "tessera", "TesseraForImageClassification")
    for images, side in ((2, 32), (3, 32), (5, 16), (4, 48)):
        pixels = torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(side))
        assert torch.equal(upstream(pixels), generated(pixels))
    assert inspect.signature(generated.tessera.forward) == inspect.signature(upstream.tessera.forward)
    with pytest.raises(TypeError, match=r"TesseraModel\.forward\(\) got an unexpected keyword argument 'colour'"):
        generated.tessera(pixels, colour=1)
    # The former name of the argument works as upstream, with upstream's warning.
    for each in (upstream, generated):
        with pytest.warns(FutureWarning, match="Use `pixel_values` instead"):
            renamed = each.head(each.tessera(images=pixels).mean(dim=1))
        assert torch.equal(renamed, upstream(pixels))
    counted = runtime.counters()["tessera.encoder"]
    assert (counted.compiles, counted.graphs, counted.fallbacks) == (1, 1, {})
    generated.save_pretrained(tmp_path)
    back = type(upstream).from_pretrained(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(back.parameters(), upstream.parameters(), strict=True))
