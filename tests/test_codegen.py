"""The build: the same bytes always, what an edit upstream leads to, what it imports, and its reading against Python's."""

from __future__ import annotations

import dataclasses
import importlib
import json
import string
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import run_python, run_vgen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upstreams import copy_upstream, edit_upstream

from vgen.codegen import output
from vgen.codegen.analyze.classes import LAYERS, PRETRAINED, Classes
from vgen.codegen.analyze.prologue import popped_keys
from vgen.codegen.analyze.roles import roles
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.build import generate
from vgen.codegen.facts import Ref, Role
from vgen.codegen.rebuild import compare_all
from vgen.codegen.source import Source, installed

COMMITTED = ("internvl", "llama", "qwen2", "qwen2_5_vl")
MODELING = "transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The same bytes.


def test_the_committed_packages_are_what_a_build_writes() -> None:
    done = run_vgen("check")
    assert done.returncode == 0, done.stdout + done.stderr
    committed = sorted(path.parent.name for path in output.default_folder().glob("*/vgen.lock"))
    assert set(COMMITTED) < set(committed)
    assert done.stdout == "".join(f"{model}: same\n" for model in committed)
    for model in COMMITTED:
        folder = output.default_folder() / model
        built = generate(model, installed()).files
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == {
            name: text.encode() for name, text in built.items()
        }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the command line built two models."""
    root = tmp_path_factory.mktemp("built")
    done = run_vgen("build", "qwen2_5_vl", "llama", "--out", "made", cwd=root, PYTHONHASHSEED="0")
    assert done.returncode == 0, done.stderr
    return root / "made"


@pytest.mark.parametrize("seed", ["1", "4242"])
def test_bytes_depend_on_neither_hashes_nor_order_nor_place(built: Path, tmp_path: Path, seed: str) -> None:
    done = run_vgen("build", "llama", "qwen2_5_vl", "--out", "else/where", cwd=tmp_path, PYTHONHASHSEED=seed)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "else" / "where") == contents(built)
    assert set(contents(built)) == {
        f"{model}/{name}"
        for model in ("llama", "qwen2_5_vl")
        for name in ("__init__.py", f"modeling_{model}.py", "vgen.lock")
    }


def test_a_second_build_touches_nothing(built: Path) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in built.rglob("*")}

    before = state()
    done = run_vgen("build", "qwen2_5_vl", "llama", "--out", "made", cwd=built.parent)
    assert done.returncode == 0, done.stderr
    assert "written" not in done.stdout
    assert state() == before


@cache
def alone(model: str) -> Mapping[str, str]:
    """The files of a model that is built from a source of its own."""
    return generate(model, installed()).files


@settings(max_examples=3, deadline=None, derandomize=True, database=None)
@given(st.permutations(["llama", "qwen2", "internvl", "qwen2_5_vl"]))
def test_builds_from_one_source_in_any_order_are_equal(order: list[str]) -> None:
    source = installed()
    for model in order:
        assert generate(model, source).files == alone(model)


# What a build imports.


def test_a_build_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    code = """
        import atexit, runpy, sys
        atexit.register(lambda: print("imported:", *sorted({name.partition(".")[0] for name in sys.modules})))
        sys.argv = ["vgen", "build", "qwen2_5_vl", "--out", "made"]
        runpy.run_module("vgen.cli", run_name="__main__", alter_sys=True)
    """
    done = run_python(["-c", textwrap.dedent(code)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made" / "qwen2_5_vl" / "modeling_qwen2_5_vl.py").is_file()
    imported = set(done.stdout.splitlines()[-1].split()[1:])
    assert "libcst" in imported
    assert imported.isdisjoint({"torch", "transformers", "numpy", "huggingface_hub"})


# An edit upstream.


@pytest.mark.parametrize(
    ("file", "find", "replace", "named", "shown"),
    [
        (
            MODELING,
            "self.spatial_merge_unit = self.spatial_merge_size * self.spatial_merge_size",
            "self.spatial_merge_unit = self.spatial_merge_size**2",
            "Qwen2_5_VisionTransformerPretrainedModel",
            [
                "-        self.spatial_merge_unit = self.spatial_merge_size * self.spatial_merge_size",
                "+        self.spatial_merge_unit = self.spatial_merge_size**2",
            ],
        ),
        (
            "transformers/vision_utils.py",
            'cu_window_seqlens = kwargs.pop("cu_window_seqlens", None)',
            'cu_window_seqlens = kwargs.pop("window_ends", None)',
            "get_vision_window_index",
            ["+            window_ends=cu_window_seqlens,"],
        ),
    ],
    ids=["an __init__ that is copied", "a helper's key"],
)
def test_an_edit_is_named_by_check_and_shown_by_diff(
    built: Path, tmp_path: Path, file: str, find: str, replace: str, named: str, shown: list[str]
) -> None:
    upstream = copy_upstream(tmp_path / "edited")
    common = ("qwen2_5_vl", "--out", str(built), "--transformers", str(upstream))
    untouched = run_vgen("check", *common)
    assert (untouched.returncode, untouched.stdout) == (0, "qwen2_5_vl: same\n")
    edit_upstream(upstream, file, find, replace)
    before = contents(built)

    checked = run_vgen("check", *common)
    assert checked.returncode == 1, checked.stderr
    assert f"{named} changed upstream ({file})" in " ".join(checked.stdout.split())
    assert checked.stdout.count("changed upstream") == 1, "and no other"
    assert "CHANGED modeling_qwen2_5_vl.py" in checked.stdout

    changed = run_vgen("diff", *common)
    assert changed.returncode == 1
    lines = changed.stdout.splitlines()
    for line in shown:
        assert line in lines
    assert contents(built) == before


def test_an_edit_outside_of_what_is_used_is_no_drift(built: Path, tmp_path: Path) -> None:
    upstream = copy_upstream(tmp_path / "edited")
    edit_upstream(
        upstream, MODELING, "class Qwen2_5_VLRotaryEmbedding(", "SOMETHING = 1\n\n\nclass Qwen2_5_VLRotaryEmbedding("
    )
    (comparison,) = compare_all(["llama"], built, Source(root=upstream, version=installed().version), version="0")
    assert not [drift for drift in comparison.drifts if drift.path != "vgen.lock"]


# A package that stands alone.

STANDALONE = """
import sys

class NoVgen:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vgen":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoVgen())
sys.path.insert(0, TESTS)
import torch
import transformers
import tiny_alone as tiny
from made.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Generated
from made import vgen_runtime as runtime

torch.set_num_threads(1)
torch.manual_seed(0)
upstream = transformers.Qwen2_5_VLForConditionalGeneration(tiny.config("qwen2_5_vl")).eval()
with runtime.options(backend="eager", compile_mm_encoder=True):
    generated = Generated(tiny.config("qwen2_5_vl")).eval()
generated.load_state_dict(upstream.state_dict())
inputs = tiny.prompt("qwen2_5_vl")
with torch.no_grad():
    assert torch.equal(generated(**inputs).logits, upstream(**inputs).logits)
upstream.save_pretrained("checkpoint")
loaded = runtime.load("checkpoint", backend="eager")
assert type(loaded) is Generated, type(loaded)
counted = runtime.counters()
assert sorted(counted) == ["qwen2_5_vl.decoder", "qwen2_5_vl.encoder"], counted
assert all((each.compiles, dict(each.fallbacks)) == (1, {}) for each in counted.values()), counted
assert not [name for name in sys.modules if name.partition(".")[0] == "vgen"]
print("alone")
"""


def test_a_standalone_package_needs_no_vgen(tmp_path: Path) -> None:
    done = run_vgen("build", "qwen2_5_vl", "--standalone", "--out", "made", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sources = [path.read_text() for path in (tmp_path / "made").rglob("*.py")]
    assert len(sources) > 5
    assert not any("import vgen\n" in text or "from vgen." in text for text in sources)
    # The helper module of these tests, without the one line of it that imports vgen.
    helper = (Path(__file__).parent / "tiny.py").read_text()
    line = "import vgen.runtime as runtime\n"
    assert line in helper
    (tmp_path / "tiny_alone.py").write_text(helper.replace(line, ""))
    ran = run_python(["-c", STANDALONE.replace("TESTS", repr(str(tmp_path)))], cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.splitlines()[-1] == "alone"
    checked = run_vgen("check", "--out", "made", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


# What must not be hoisted, and what can't be followed.

BEFORE = "        position_ids = get_vision_position_ids(grid_thw, self.spatial_merge_size, kwargs=kwargs)\n" + (
    "        cu_seqlens, max_seqlen = get_vision_attention_seqlens("
)


@pytest.mark.parametrize(
    "statement",
    [
        "grid_thw = grid_thw.flip(0)",
        "grid_thw += 1",
        "grid_thw[0] = 1",
        "if hidden_states.shape[0] > 8:\n            grid_thw = grid_thw[:1]",
        "self.spatial_merge_size = 2",
        "grid_thw.clamp_(max=8)",
        'kwargs.pop("position_ids", None)',
        'kwargs["position_ids"] = None',
        "kwargs.update(position_ids=None)",
        "if grid_thw is None:\n            return self.patch_embed(hidden_states)",
        'if grid_thw is None:\n            raise ValueError("a grid is needed")',
    ],
)
def test_a_call_isnt_hoisted_past_what_it_depends_on(tmp_path: Path, statement: str) -> None:
    upstream = copy_upstream(tmp_path / "edited")
    edit_upstream(upstream, MODELING, BEFORE, f"        {statement}\n{BEFORE}")
    plan = generate("qwen2_5_vl", Source(root=upstream, version="0")).plan
    (encoder,) = (region for region in plan.regions if region.role is Role.ENCODER)
    assert "get_vision_position_ids" not in {call.helper.name for call in encoder.hoisted}


def test_a_get_decoder_that_cant_be_followed_is_told(tmp_path: Path) -> None:
    upstream = copy_upstream(tmp_path / "edited")
    file = "transformers/models/llama/modeling_llama.py"
    edit_upstream(
        upstream,
        file,
        "        self.post_init()\n\n    @can_return_tuple\n",
        "        self.post_init()\n\n    def get_decoder(self):\n        if self.config.tie_word_embeddings:\n"
        "            return self.model\n        return self\n\n    @can_return_tuple\n",
    )
    line = (upstream / file).read_text().partition("    def get_decoder(self):")[0].count("\n") + 1
    done = run_vgen("explain", "llama", "--transformers", str(upstream), COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert f"modeling_llama.py:{line}" in done.stdout


# Reading against Python itself.

MRO_MODELS = (
    "bart",
    "clip",
    "gemma3",
    "gpt2",
    "internvl",
    "llama",
    "llama4",
    "mamba",
    "mixtral",
    "pixtral",
    "qwen2_5_omni",
    "qwen2_5_vl",
    "qwen3_vl_moe",
    "siglip",
    "t5",
)


@pytest.fixture(scope="module")
def reading() -> tuple[Classes, Trees]:
    source = installed()
    return Classes(source), Trees(source)


def real_ref(found: type) -> Ref | None:
    """The reference to a real class, where the build looks into its file or knows it by name."""
    file = found.__module__.replace(".", "/") + ".py"
    ref = Ref(file=file, name=found.__qualname__)
    return ref if file.startswith("transformers/models/") or file == LAYERS or ref == PRETRAINED else None


@pytest.mark.parametrize("model", MRO_MODELS)
def test_the_mro_is_pythons(reading: tuple[Classes, Trees], model: str) -> None:
    classes, _ = reading
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    assert len(own) > 3
    for found in own:
        ref = real_ref(found)
        assert ref is not None
        expected = [each for each in map(real_ref, found.__mro__) if each is not None]
        static = [
            each
            for each in classes.mro(ref)
            if each.file.startswith("transformers/models/") or each.file == LAYERS or each == PRETRAINED
        ]
        assert static == expected, found
        from transformers import PreTrainedModel

        assert classes.is_pretrained(ref) is issubclass(found, PreTrainedModel), found
        for method in ("forward", "__init__", "get_decoder"):
            real = next((each for each in found.__mro__ if method in vars(each)), None)
            where = classes.method(ref, method)
            if dataclasses.is_dataclass(real):
                continue  # its `__init__` stands nowhere
            if real is not None and real_ref(real) not in (None, PRETRAINED):
                assert where is not None, (found, method)
                assert where[0] == real_ref(real), (found, method)


ROLE_MODELS = (
    "gemma3",
    "gpt2",
    "internvl",
    "llama",
    "llava",
    "mistral3",
    "mixtral",
    "opt",
    "paligemma",
    "qwen2_5_vl",
    "qwen2_audio",
    "smolvlm",
    "whisper",
)
SMALL = {
    "num_hidden_layers": 1,
    "decoder_layers": 1,
    "encoder_layers": 1,
    "depth": 1,
    "n_layer": 1,
}


def shrunk(config: Any) -> Any:
    """A default configuration, less deep: what is made stays the same."""
    for name, value in SMALL.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, value)
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = config.layer_types[:1]
    for name in getattr(config, "sub_configs", {}):
        if getattr(config, name, None) is not None:
            shrunk(getattr(config, name))
    return config


def running_entries(model: str) -> Iterator[Any]:
    """The entries of a model, on the meta device, with its default configuration made less deep."""
    import torch
    import transformers

    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    for name in module.__all__:
        entry = getattr(module, name)
        if not issubclass(entry, transformers.PreTrainedModel) or not name.endswith(
            ("ForConditionalGeneration", "ForCausalLM", "Model", "LMHeadModel")
        ):
            continue
        if name.endswith("PreTrainedModel") or "forward" not in {
            key for each in entry.__mro__[:-8] for key in vars(each)
        }:
            continue
        with torch.device("meta"):
            yield entry(shrunk(entry.config_class()))


@pytest.mark.parametrize("model", ROLE_MODELS)
def test_roles_are_those_of_the_running_model(reading: tuple[Classes, Trees], model: str) -> None:
    classes, trees = reading
    decoders = encoders = 0
    for running in running_entries(model):
        ref = real_ref(type(running))
        assert ref is not None
        found = roles(classes, trees, ref)
        for role in found:
            part = running
            for attribute in role.path:
                part = getattr(part, attribute)
            assert real_ref(type(part)) == role.ref, (type(running), role)
        decoder = running.get_decoder()
        static = [role for role in found if role.role is Role.DECODER]
        if static:
            assert real_ref(type(decoder)) == static[0].ref, type(running)
            decoders += 1
        for modality in ("image", "audio"):
            encoder = running.get_encoder(modality)
            if encoder is not None and encoder is not running and hasattr(encoder, "config"):
                assert real_ref(type(encoder)) in {role.ref for role in found}, (type(running), modality)
                encoders += 1
    assert decoders
    if model in ("gemma3", "internvl", "llava", "paligemma", "qwen2_5_vl", "qwen2_audio"):
        assert encoders


# Which keys a prologue helper takes.

NAMES = st.text(string.ascii_lowercase, min_size=3, max_size=8).map(lambda name: f"k_{name}")


@st.composite
def helpers(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    """The source of a helper `get_sizes(grid, kwargs)`, and the keys under which it takes its results, in order."""
    keys = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    locals_ = [f"v{index}" for index in range(len(keys))]
    returned = ", ".join(locals_)
    pops = [f'kwargs.pop("{key}", None)' for key in keys]
    body = [f"{name} = {pop}" for name, pop in zip(locals_, pops, strict=True)]
    match draw(st.sampled_from(["early", "late", "walrus", "through"])):
        case "early":
            body += [f"if {' and '.join(f'{name} is not None' for name in locals_)}:", f"    return {returned}"]
        case "late":
            body += [line for name in locals_ for line in (f"if {name} is None:", f"    {name} = grid.sum()")]
            body += [f"return {returned}"]
        case "walrus":
            tests = [f"({name} := {pop}) is not None" for name, pop in zip(locals_, pops, strict=True)]
            body = [f"if {' and '.join(tests)}:", f"    return {returned}", "total = grid.sum()"]
            body += [f"return {', '.join(['total'] * len(keys))}"]
        case "through":
            body = [f"{returned} = inner(grid, kwargs=kwargs)", f"return {returned}"]
            lines = [f"{name} = {pop}" for name, pop in zip(locals_, pops, strict=True)]
            inner = "".join(f"    {line}\n" for line in [*lines, f"return {returned}"])
            return f"def inner(grid, kwargs):\n{inner}\n\n" + _function(body), tuple(keys)
    return _function(body), tuple(keys)


def _function(body: list[str]) -> str:
    return "def get_sizes(grid, kwargs):\n" + "".join(f"    {line}\n" for line in body)


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(helpers())
def test_the_keys_of_a_helper_are_those_that_it_takes(tmp_path: Path, helper: tuple[str, tuple[str, ...]]) -> None:
    text, keys = helper
    rel = "transformers/sizes.py"
    (tmp_path / "transformers").mkdir(exist_ok=True)
    (tmp_path / rel).write_text(text)
    found = popped_keys(Source(root=tmp_path, version="0"), Ref(file=rel, name="get_sizes"))
    assert found == keys, text
    # And they are right: handed all of them, the helper computes nothing.
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    result = namespace["get_sizes"](None, {key: index for index, key in enumerate(found)})
    assert result == (tuple(range(len(keys))) if len(keys) > 1 else 0)


@pytest.mark.parametrize(
    "body",
    [
        "return grid.sum()",
        'sizes = kwargs.get("sizes")\n    return sizes',
        'sizes = kwargs.pop("sizes", None)\n    return sizes + 1',
        'kwargs.pop("sizes", None)\n    return grid',
    ],
)
def test_a_helper_that_takes_nothing_has_no_keys(tmp_path: Path, body: str) -> None:
    rel = "transformers/sizes.py"
    (tmp_path / "transformers").mkdir()
    (tmp_path / rel).write_text(f"def get_sizes(grid, kwargs):\n    {body}\n")
    assert popped_keys(Source(root=tmp_path, version="0"), Ref(file=rel, name="get_sizes")) == ()


def test_facts_are_the_same_for_machines(tmp_path: Path) -> None:
    runs = [run_vgen("explain", "internvl", "--json", cwd=tmp_path, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    data = json.loads(runs[0].stdout)
    assert {region["ref"]["name"] for region in data["plan"]["regions"]} >= {"InternVLVisionModel"}
    assert str(Path(sys.prefix)) not in runs[0].stdout, "paths are relative to what was read"
