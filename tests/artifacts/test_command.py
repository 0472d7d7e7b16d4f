"""`vgen compile` and `vgen artifacts`, in processes of their own, and `vgen.load` from what they made."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from conftest import run_python, run_vgen
from transformers import LlamaForCausalLM

from vgen.runtime.store import read

LOADED = """
import sys, torch, vgen
from vgen.runtime import counters
model = vgen.load(sys.argv[1])
ids = torch.randint(3, 140, (1, int(sys.argv[2])), generator=torch.Generator().manual_seed(5))
before = set(sys.modules)
options = dict(min_new_tokens=5, max_new_tokens=5, do_sample=False)
found = model.generate(ids, **options, cache_implementation="static", disable_compile=True)
from transformers import LlamaForCausalLM
eager = LlamaForCausalLM.from_pretrained(sys.argv[1])
assert torch.equal(found, eager.generate(ids, **options)), found
count = counters()["llama.decoder"]
assert (count.calls, count.loaded, count.compiles) == (5, 5, 0), count
assert "torch._inductor.compile_fx" not in set(sys.modules) - before
print("served")
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny.config("llama", num_hidden_layers=1)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def compiled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store that the command line filled from a config alone, and what it printed."""
    alone = tmp_path_factory.mktemp("config")
    shutil.copy(checkpoint / "config.json", alone)
    store = tmp_path_factory.mktemp("into") / "store"
    arguments = ["compile", str(alone), "--variants", "static", "--batch", "1", "--into", str(store)]
    done = run_vgen(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return store, done.stdout


def test_it_says_sizes_seconds_and_how_exact(compiled: tuple[Path, str]) -> None:
    store, printed = compiled
    assert f"LlamaForCausalLM in float32 on cpu: 2 artifacts in {store}" in printed
    assert len(re.findall(r"llama\.decoder-\w{32}\.vgenart  [\d.]+ MB, compiled in [\d.]+ s", printed)) == 2
    assert re.search(r"llama\.decoder 8× from artifacts, first call [\d.]+ s, within [\de.-]+ of eager", printed)


@pytest.mark.parametrize("length", ["4", "40"])
def test_a_checkpoint_is_served_in_a_fresh_process(compiled: tuple[Path, str], checkpoint: Path, length: str) -> None:
    store = str(compiled[0])
    done = run_python(["-c", LOADED, str(checkpoint), length], VGEN_STORE=store, VGEN_ARTIFACTS="require")
    assert done.stdout == "served\n", done.stderr[-3000:]


def test_nothing_is_compiled_where_inductor_has_an_empty_cache(
    compiled: tuple[Path, str], checkpoint: Path, tmp_path: Path
) -> None:
    store, cache = compiled[0], tmp_path / "inductor"
    environment = {"VGEN_STORE": str(store), "VGEN_ARTIFACTS": "require", "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    done = run_python(["-c", LOADED, str(checkpoint), "7"], **environment)
    assert done.stdout == "served\n", done.stderr[-3000:]
    saved = {name for path in store.glob("*.vgenart") for name in read(path).header["libraries"]}
    found = {str(path.relative_to(cache)) for path in cache.rglob("*.so")}
    assert any(name.endswith(".main.so") for name in found)
    assert found <= saved


def test_list_and_verify(compiled: tuple[Path, str], tmp_path: Path) -> None:
    store = Path(shutil.copytree(compiled[0], tmp_path / "store"))
    found = json.loads(run_vgen("artifacts", "list", "--store", str(store), "--json").stdout)
    assert [each["header"]["tag"] for each in found] == ["llama.decoder"] * 2
    assert not any(each["problem"] or each["stale"] for each in found)
    assert run_vgen("artifacts", "verify", "--store", str(store)).returncode == 0
    one, other = sorted(store.glob("*.vgenart"))
    one.write_bytes(one.read_bytes()[:-1])
    other.chmod(0o666)
    done = run_vgen("artifacts", "verify", "--store", str(store))
    assert done.returncode == 1
    assert "truncated" in done.stdout
    assert "others may write" in done.stdout


def test_prune_removes_what_no_process_can_use(compiled: tuple[Path, str], tmp_path: Path) -> None:
    store = Path(shutil.copytree(compiled[0], tmp_path / "store"))
    one, other = sorted(store.glob("*.vgenart"))
    one.write_bytes(b"")
    (store / ".partial-abc").write_bytes(b"half")
    assert "would be removed" in run_vgen("artifacts", "prune", "--store", str(store), "--dry-run").stdout
    assert one.exists()
    done = run_vgen("artifacts", "prune", "--store", str(store))
    assert done.returncode == 0
    assert sorted(store.glob("*.vgenart")) == [other]
    assert not (store / ".partial-abc").exists()


def test_why_names_what_differs(compiled: tuple[Path, str], checkpoint: Path) -> None:
    arguments = ["artifacts", "why", str(checkpoint), "--store", str(compiled[0]), "--variants", "static"]
    assert run_vgen(*arguments, "--batch", "1").returncode == 0
    done = run_vgen(*arguments, "--batch", "1", "--dtype", "bfloat16")
    assert done.returncode == 1
    assert "torch.float32" in done.stdout
    assert "torch.bfloat16" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no_such_model"], "neither a folder nor a model type"),
        (["llama", "--config", "CONFIG", "--device", "cuda"], "no GPU here"),
        (["bert", "--config", "BERT", "--variants", "static"], "doesn't generate"),
    ],
)
def test_bad_input_is_one_paragraph(arguments: list[str], words: str, checkpoint: Path, tmp_path: Path) -> None:
    if "BERT" in arguments:
        from transformers import BertConfig

        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertConfig(**sizes, vocab_size=64, architectures=["BertForMaskedLM"]).save_pretrained(tmp_path / "bert")
    places = {"CONFIG": str(checkpoint), "BERT": str(tmp_path / "bert")}
    into = str(tmp_path / "store")
    done = run_vgen("compile", *(places.get(each, each) for each in arguments), "--into", into)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not Path(into).exists()
