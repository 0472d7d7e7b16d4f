"""Functions that loop over a size: those that may be operators are found, and a graph computes by them what eager computes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import built
import pytest
import tiny
import torch
from transformers.models.falcon_mamba import modeling_falcon_mamba as falcon
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru
from transformers.models.rwkv import modeling_rwkv as rwkv
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.size_loops import find
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed
from vgen.runtime import loop_over_sizes
from vgen.runtime.probing import ProbeError, probe

RWKV = Ref(file="transformers/models/rwkv/modeling_rwkv.py", name="RwkvSelfAttention")
FOUND = {
    ("falcon_mamba", "FalconMambaMixer", "mamba_selective_scan", True),
    ("kimi_linear", "KimiLinearDeltaAttention", "recurrent_kimi_delta_attention", False),
    ("olmo_hybrid", "OlmoHybridGatedDeltaNet", "torch_chunk_gated_delta_rule", False),
    ("recurrent_gemma", "RecurrentGemmaRglru", "self._rnn_scan", False),
    ("rwkv", "RwkvSelfAttention", "rwkv_linear_attention", False),
    ("zamba", "ZambaMambaMixer", "mamba_selective_scan", True),
}
LEFT = ("bert", "gemma4", "llama", "tapas", "whisper")
"""Models whose loops are over numbers of dimensions, features or layers, or that have none."""


def calls(source: Source, ref: Ref) -> list[tuple[str, bool]]:
    return [(name, looping.differs) for each in find(Classes(source), ref) for name, looping in each.found]


def test_the_functions_that_are_found() -> None:
    source, found = installed(), set()
    for model in source.models():
        file = source.modeling_file(model)
        for name, definition in file.definitions.items():
            if isinstance(definition.node, ast.ClassDef):
                found |= {(model, name, *each) for each in calls(source, Ref(file=file.rel, name=name))}
    assert found >= FOUND
    assert not {model for model, *_ in found} & set(LEFT)


STEP = "        num_state = e1 * num_state + e2 * current_value\n"
EDITS = {
    "random": f"{STEP}        num_state = nn.functional.dropout(num_state)\n",
    "it keeps something": f"{STEP}        logger.last = num_state\n",
    "a global": f"{STEP}        global last\n        last = num_state\n",
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_does_more_than_compute_is_left(edit: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    assert calls(folder(tmp_path / "upstream"), RWKV)
    edit_upstream(tmp_path / "upstream", RWKV.file, STEP, EDITS[edit])
    assert not calls(folder(tmp_path / "upstream"), RWKV)


def scanned(batch: int, length: int, *, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Arguments of Mamba's scan: hidden_states and dt are [batch, 6, length], A is [6, 4], B and C are [batch, 4, length]."""
    generator = torch.Generator().manual_seed(length)
    sizes = [(batch, 6, length), (batch, 6, length), (6, 4), (batch, 4, length), (batch, 4, length)]
    return [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes]


def scan(*tensors: torch.Tensor) -> Any:
    name = "transformers.models.falcon_mamba.modeling_falcon_mamba:mamba_selective_scan"
    return loop_over_sizes(
        name,
        falcon.mamba_selective_scan,
        True,
        *tensors,
        delta_softplus=True,
        return_last_state=True,
        use_associative_scan=True,
    )


def linear(decay: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *state: torch.Tensor) -> Any:
    name = "transformers.models.rwkv.modeling_rwkv:rwkv_linear_attention"
    return loop_over_sizes(name, rwkv.rwkv_linear_attention, False, decay, decay, key, value, state=state or None)


def attended(batch: int, length: int, *, has_state: bool = True) -> list[torch.Tensor]:
    """Arguments of RWKV's attention: time_decay is [8], key and value are [batch, length, 8], each state is [batch, 8]."""
    generator = torch.Generator().manual_seed(length)
    sizes = [(8,), (batch, length, 8), (batch, length, 8), *([(batch, 8)] * 3 if has_state else [])]
    return [torch.randn(size, generator=generator).requires_grad_() for size in sizes]


class Graphs:
    """A backend that counts what it is handed."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def require_equal(compiled: Any, function: Any, tensors: list[torch.Tensor], *, of: int | None = None) -> None:
    """Values and gradients of what is compiled are those of eager, to the last bit; None where eager has none. `of` is the only
    result that the loss reads."""
    results = []
    for each in (function, compiled):
        outputs = [out for out in torch.utils._pytree.tree_leaves(each(*tensors)) if out is not None]
        loss = sum(out.float().square().sum() for out in (outputs if of is None else [outputs[of]]))
        results.append([*outputs, *torch.autograd.grad(loss, tensors, allow_unused=True)])
    for theirs, ours in zip(*results, strict=True):
        assert (ours is None) == (theirs is None)
        assert theirs is None or (torch.equal(ours, theirs) and ours.dtype == theirs.dtype)


@pytest.mark.parametrize("of", [None, 0, 1])
def test_one_graph_computes_what_eager_computes_for_every_size(of: int | None) -> None:
    backend = Graphs()
    for function, make in ((scan, scanned), (linear, attended)):
        torch._dynamo.reset()
        compiled = torch.compile(function, backend=backend, dynamic=True, fullgraph=True)
        for sizes in ((2, 5), (3, 9), (4, 2)):
            require_equal(compiled, function, make(*sizes), of=of)
    assert backend.count == 2


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_other_backends_compute_it_too(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(scan, backend=backend, dynamic=True, fullgraph=True)
    for sizes in ((2, 5), (3, 9)):
        tensors = scanned(*sizes)
        theirs, ours = (each(*tensors)[0] for each in (scan, compiled))
        torch.testing.assert_close(ours, theirs)
        grads = [torch.autograd.grad(each.square().sum(), tensors) for each in (theirs, ours)]
        torch.testing.assert_close(*grads)


def test_half_precision_and_autocast() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(scan, backend="eager", dynamic=True, fullgraph=True)
    require_equal(compiled, scan, scanned(2, 5, dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        require_equal(compiled, scan, scanned(2, 5))
    with torch.inference_mode():
        tensors = scanned(2, 5)
        assert all(map(torch.equal, scan(*tensors), compiled(*tensors)))


def test_a_loop_that_turns_once_is_traced() -> None:
    torch._dynamo.reset()
    targets = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        targets.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    compiled = torch.compile(linear, backend=backend, dynamic=True, fullgraph=True)
    for length in (1, 5):
        require_equal(compiled, linear, attended(2, length))
    once, often = (any("loop_over_sizes" in each for each in found) for found in targets)
    assert (once, often) == (False, True)


def gated(tensors: Any) -> Any:
    return RecurrentGemmaRglru._rnn_scan(None, tensors[0], tensors[1], tensors[1] > 0, None)  # type: ignore[arg-type]


UNFIT: dict[str, Callable[[Any], Any]] = {
    "changes an argument": lambda tensors: tensors[0].add_(1),
    "returns an argument": lambda tensors: (tensors[0], tensors[0] + 1),
    "part of a tensor": lambda tensors: (tensors[0] + 1)[:, :3],
    "two parts": lambda tensors: (tensors[0] + 1).chunk(2, dim=2),
    "random": lambda tensors: torch.rand_like(tensors[0]),
    "on tensors without data": lambda tensors: tensors[0] * tensors[0].sum().item(),
    "none that it was given": lambda tensors: torch.cat([tensors[0], tensors[0]]),
    "a size of what it returns": lambda tensors: torch.zeros(max(tensors[0].shape[0], 5)) + tensors[0].sum(),
    "no gradient": lambda tensors: (tensors[0] + 1, tensors[0].detach() + 1),
    "other than tensors": lambda tensors: (tensors[0] + 1, 1),
}
"""What can't be an operator, by a part of the reason."""


def symbolic(sizes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """Tensors without data whose sizes are symbols."""
    shapes = torch.fx.experimental.symbolic_shapes
    mode = torch._subclasses.FakeTensorMode(shape_env=shapes.ShapeEnv())
    dynamic = [shapes.DimDynamic.DYNAMIC] * 3
    return [
        mode.from_tensor(
            torch.randn(size).requires_grad_(),
            symbolic_context=shapes.StatelessSymbolicContext(dynamic_sizes=dynamic[: len(size)]),
        )
        for size in sizes
    ]


@pytest.mark.parametrize("reason", UNFIT)
def test_what_can_not_be_an_operator(reason: str) -> None:
    with pytest.raises(ProbeError, match=reason):
        probe(UNFIT[reason], symbolic([(2, 5, 6)]))


def test_sizes_and_strides_are_found() -> None:
    found = probe(gated, symbolic([(2, 5, 6), (2, 5, 6)]))
    assert [each.size for each in found.outputs] == [((0, 0), (0, 1), (0, 2)), ((0, 0), (0, 2))]
    assert found.structure == "(tt)"
    assert found.loops
    (output,) = probe(lambda tensors: (tensors[0] + 1).transpose(0, 2).tanh(), symbolic([(2, 5, 6)])).outputs
    assert output.order == (2, 1, 0)
    assert not probe(lambda tensors: tensors[0] + 1, symbolic([(2, 5, 6)])).loops


def test_sizes_that_have_to_be_equal_are_guarded() -> None:
    tensors = symbolic([(2, 5, 6), (2, 5, 6)])
    env = tensors[0].shape[0].node.shape_env
    found = probe(lambda given: given[0].sum(0) + given[1][:2].sum(0), tensors)
    assert not env.guards
    found.guard(env)
    equal = [str(guard.expr) for guard in env.guards]
    # The first dimensions, which are summed over, may differ.
    assert len(equal) == 2
    assert all(each.startswith("Eq(") for each in equal)


@torch.no_grad()
def test_what_replaces_the_function_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("recurrent_gemma", "RecurrentGemmaForCausalLM", tmp_path, monkeypatch)
    ids = tiny.text(2, 9) % made.config.vocab_size

    def both() -> list[torch.Tensor]:
        return [model(ids, use_cache=False).logits for model in (generated.eval(), upstream.eval())]

    before = both()
    assert torch.equal(*before)

    def tripled(self: RecurrentGemmaRglru, *arguments: Any, **named: Any) -> Any:
        states, last = RecurrentGemmaRglru._rnn_scan(self, *arguments, **named)
        return states * 3, last

    for module in (*generated.modules(), *upstream.modules()):
        if isinstance(module, RecurrentGemmaRglru):
            module._rnn_scan = MethodType(tripled, module)
    after = both()
    assert torch.equal(*after)
    assert not torch.equal(after[0], before[0])


@pytest.mark.parametrize("package", ["mamba", "jamba"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_steps_are_upstreams(
    package: str, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"mamba": "MambaForCausalLM", "jamba": "JambaForCausalLM"}[package]
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    for model in (upstream, generated):
        model.gradient_checkpointing_enable() if checkpointing else None
    for length in (9, 6):
        ids = tiny.text(2, length) % made.config.vocab_size
        built.require_equal_steps(upstream, generated, {"input_ids": ids}, result="logits")
    (count,) = runtime.counters().values()
    assert not count.fallbacks
    assert count.graphs == 1


def test_prompts_and_decode_steps_are_a_graph_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, _ = built.built_pair("mamba", "MambaForCausalLM", tmp_path, monkeypatch)
    for length in (7, 11):
        tokens = torch.randint(2, 50, (2, length), generator=torch.Generator().manual_seed(0))
        theirs, ours = (
            model.eval().generate(
                tokens, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
            for model in (upstream, generated)
        )
        assert torch.equal(theirs.sequences, ours.sequences)
        assert all(map(torch.equal, theirs.logits, ours.logits))
    (count,) = runtime.counters().values()
    assert (count.calls, count.graphs, count.fallbacks) == (12, 2, {})


SERVED = """
import sys
from contextlib import nullcontext
from pathlib import Path
import torch
from built_scans.mamba import MambaModel
from transformers.models.mamba.modeling_mamba import MambaModel as Upstream
from vgen.runtime import counters
from vgen.runtime.building import building
from vgen.verify.making import make_tiny
made = make_tiny(Upstream)
torch.manual_seed(0)
upstream, model = Upstream(made.config).eval(), MambaModel(made.config).eval()
model.load_state_dict(upstream.state_dict())
for length in (9, 5):
    ids = torch.arange(2 * length).view(2, length)
    with torch.no_grad(), building(Path(sys.argv[2])) if sys.argv[1] == "build" and length == 9 else nullcontext():
        found, expected = (each(ids, use_cache=False).last_hidden_state for each in (model, upstream))
    torch.testing.assert_close(found, expected)
count = counters()["mamba.decoder"]
assert (count.loaded, count.compiles) == (2, 0), count
assert len(list(Path(sys.argv[2]).glob("*.vgenart"))) == 1
"""


@pytest.mark.slow
def test_another_process_runs_what_was_compiled_ahead_of_time(tmp_path: Path) -> None:
    built.require_served("mamba", "built_scans", SERVED, tmp_path)
