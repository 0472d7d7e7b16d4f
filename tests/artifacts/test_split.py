"""A model that Transformers splits among processes: compiled as it is, and served from artifacts of its parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from conftest import run_python, run_vgen
from transformers import LlamaForCausalLM

import vgen.runtime.parallel as parallel

HERE = """
import json, sys, warnings
import torch
import torch.distributed as dist
import vgen
from transformers import LlamaForCausalLM
from vgen.runtime import counters, reset_counters

warnings.filterwarnings("ignore")
dist.init_process_group("gloo")
folder, backend = sys.argv[1:]
eager = LlamaForCausalLM.from_pretrained(folder, tp_plan="auto").eval()
model = vgen.load(folder, tp_plan="auto", backend=backend).eval()
apart, equal = 0.0, True
for length in (9, 21):
    ids = torch.randint(3, 140, (1, length), generator=torch.Generator().manual_seed(length))
    options = dict(min_new_tokens=4, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
    ours, theirs = model.generate(ids, **options), eager.generate(ids, **options)
    equal &= torch.equal(ours.sequences, theirs.sequences)
    apart = max(apart, *((a - b).abs().max().item() for a, b in zip(ours.logits, theirs.logits)))
count = counters()["llama.decoder"]
kind = type(model.model.layers[0].mlp.up_proj.weight).__name__
if dist.get_rank() == 0:
    told = dict(equal=equal, apart=apart, kind=kind, calls=count.calls, loaded=count.loaded, fallbacks=dict(count.fallbacks))
    print(json.dumps(told | dict(compiles=count.compiles, variants=count.variants)))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny.config("llama", num_hidden_layers=1, tie_word_embeddings=False)).save_pretrained(folder)
    return folder


def in_two(checkpoint: Path, tmp_path: Path, backend: str, **environment: str) -> dict[str, object]:
    """What process 0 of two says of `HERE`."""
    (tmp_path / "here.py").write_text(HERE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run_python(
        [*launcher, str(tmp_path / "here.py"), str(checkpoint), backend], OMP_NUM_THREADS="1", **environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_split_decoder_is_one_graph_and_upstreams_to_the_bit(checkpoint: Path, tmp_path: Path) -> None:
    found = in_two(checkpoint, tmp_path, "eager")
    assert found["kind"] == "DTensor"
    assert found["equal"]
    assert found["apart"] == 0
    assert found["fallbacks"] == {}
    assert found["compiles"] == found["variants"]


@pytest.mark.slow
def test_each_process_is_served_from_its_own_artifacts(checkpoint: Path, tmp_path: Path) -> None:
    alone = tmp_path / "config"
    alone.mkdir()
    shutil.copy(checkpoint / "config.json", alone)
    store = tmp_path / "store"
    done = run_vgen("compile", str(alone), "--tp", "2", "--variants", "dynamic", "--batch", "1", "--into", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LlamaForCausalLM in float32 on cpu, split among 2:" in done.stdout
    environment = {"VGEN_STORE": str(store), "VGEN_ARTIFACTS": "require"}
    found = in_two(checkpoint, tmp_path, "inductor", **environment)
    assert found["equal"]
    assert found["loaded"] == found["calls"] == 8
    # A model in one piece isn't served by them, and is told why.
    why = run_vgen("artifacts", "why", str(alone), "--variants", "dynamic", "--batch", "1", "--store", str(store))
    assert why.returncode == 1
    assert "mesh [0, 1] of ('tp',)" in why.stdout


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({"num_key_value_heads": 2}, "3", "has 2 heads of keys and values, which 3 processes can't share"),
        (
            {"model_type": "bert", "architectures": ["BertModel"]},
            "2",
            "BertModel has no tensor-parallel plan in Transformers",
        ),
    ],
)
def test_what_can_not_be_split_says_why(
    checkpoint: Path, tmp_path: Path, changes: dict[str, object], processes: str, words: str
) -> None:
    told = json.loads((checkpoint / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(told))
    done = run_vgen("compile", str(tmp_path), "--tp", processes, "--into", str(tmp_path / "store"))
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "store").exists()


def test_a_split_model_is_on_no_single_gpu(checkpoint: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = run_vgen("compile", str(checkpoint), "--tp", "2", "--device", "cuda:1", "--into", str(store))
    assert done.returncode == 2
    assert "leave the number out (--device cuda)" in " ".join(done.stderr.split())
    assert not store.exists()


def test_only_upstreams_own_forward_is_known() -> None:
    layer = torch.nn.Linear(4, 4)

    def tp_forward(x: torch.Tensor) -> torch.Tensor:
        return x

    assert parallel.spell_forward(tp_forward, layer, repr) is None
    assert parallel.spell_forward(layer.forward, layer, repr) is None
    assert not parallel.is_distributed(layer.weight)
