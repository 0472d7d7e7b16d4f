"""Experts that are looped over: those that may be are found, others are left, and a graph computes what upstream computes."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import built
import pytest
import tiny
import torch
import torch._dynamo.testing
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.dbrx import modeling_dbrx as dbrx
from transformers.models.dbrx.configuration_dbrx import DbrxFFNConfig
from transformers.models.openai_privacy_filter import OpenAIPrivacyFilterConfig
from transformers.models.openai_privacy_filter import modeling_openai_privacy_filter as privacy_filter
from transformers.models.switch_transformers import SwitchTransformersConfig
from transformers.models.switch_transformers import modeling_switch_transformers as switch
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.classes import Classes
from vgen.codegen.analyze.experts import ADD, Experts, find
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed
from vgen.runtime.compiler import CompiledCore
from vgen.runtime.cuda_graphs import GraphedCore
from vgen.runtime.settings import Options
from vgen.runtime.structure import StructureError, assembled, describe_structure

DBRX = Ref(file="transformers/models/dbrx/modeling_dbrx.py", name="DbrxExperts")
LONGCAT = Ref(file="transformers/models/longcat_flash/modeling_longcat_flash.py", name="LongcatFlashExperts")
NLLB = Ref(file="transformers/models/nllb_moe/modeling_nllb_moe.py", name="NllbMoeExperts")
FILTER = Ref(
    file="transformers/models/openai_privacy_filter/modeling_openai_privacy_filter.py",
    name="OpenAIPrivacyFilterExperts",
)
STEP = Ref(file="transformers/models/step3p7/modeling_step3p7.py", name="Step3p7Experts")
SWITCH = Ref(
    file="transformers/models/switch_transformers/modeling_switch_transformers.py", name="SwitchTransformersExperts"
)
# The rank of hidden states, whether every turn reads the same, whether Transformers chooses what runs.
FOUND = {
    DBRX: (3, True, False),
    LONGCAT: (None, False, False),
    NLLB: (None, False, False),
    FILTER: (None, True, True),
    STEP: (None, True, False),
    SWITCH: (None, False, False),
}


def experts_of(source: Source, ref: Ref) -> Experts | None:
    return find(Classes(source), Trees(source), ref)


def test_the_experts_that_are_found() -> None:
    source, found = installed(), {}
    classes, trees = Classes(source), Trees(source)
    for file in (source.modeling_file(model) for model in source.models()):
        for definition in file.definitions.values() if ADD in file.text else ():
            ref = Ref(file=file.rel, name=definition.name)
            experts = find(classes, trees, ref) if isinstance(definition.node, ast.ClassDef) else None
            if experts is not None:
                found[ref] = (experts.rank, experts.is_even, experts.is_chosen)
    assert found.items() >= FOUND.items()


TURN = "            states = self.mlp(hidden_states[token_idx], w1, v1, w2)\n"
END = "        next_states = next_states.view(batch_size, -1, self.hidden_size)\n"
ZEROS = "torch.zeros_like(hidden_states, dtype=hidden_states.dtype, device=hidden_states.device)"
EDITS = {
    "an argument changes": (TURN, f"            hidden_states.mul_(2)\n{TURN}"),
    "a parameter changes": (TURN, f"            self.mlp.v1[0] = 1\n{TURN}"),
    "in place": (TURN, f"            top_k_weights += 1\n{TURN}"),
    "random": (TURN, f"{TURN}            states = nn.functional.dropout(states)\n"),
    "random inside": ("        gate_proj = self.activation_fn(gate_proj)\n", "        gate_proj = nn.functional.dropout(gate_proj)\n"),
    "it keeps something": (TURN, f"{TURN}            self.last = states\n"),
    "it reads the config": (TURN, f"{TURN}            states = states * self.config.scale\n"),
    "another dtype": (ZEROS, "torch.zeros_like(hidden_states, dtype=torch.float32)"),
    "another width": (END, "        next_states = next_states.view(batch_size, -1, self.ffn_hidden_size)\n"),
    "it stays flat": (END, ""),
    "two loops": (END, f"        for index in range(2):\n            next_states = next_states * index\n{END}"),
    "what is unknown is called": (TURN, f"{TURN}            states = route(states)\n"),
}  # fmt: skip
"""Edits of DBRX's experts after which they stay in the graph."""


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_not_known_to_be_pure_is_left(edit: str, tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", DBRX.file, *EDITS[edit])
    assert experts_of(folder(tmp_path / "upstream"), DBRX) is None


def test_decorated_experts_are_left_where_upstream_never_chooses_the_loop(tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit = ("    def get_correct_experts_implementation(self", "    def get_something_else(self")
    edit_upstream(tmp_path / "upstream", FILTER.file, *edit)
    assert experts_of(folder(tmp_path / "upstream"), FILTER) is None


def test_a_turn_that_branches_reads_other_parameters(tmp_path: Path) -> None:
    copy_upstream(tmp_path / "upstream")
    edit = (TURN, f"            if idx.numel() > 1:\n                v1 = self.mlp.v1\n{TURN}")
    edit_upstream(tmp_path / "upstream", DBRX.file, *edit)
    experts = experts_of(folder(tmp_path / "upstream"), DBRX)
    assert experts is not None
    assert not experts.is_even


class DbrxExperts(runtime.ExpertLoop, dbrx.DbrxExperts):
    """As it is generated."""

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(*arguments)
        return self.loop_over_experts("transformers.models.dbrx.modeling_dbrx:DbrxExperts", *arguments, rank=3)


class FilterExperts(runtime.ExpertLoop, privacy_filter.OpenAIPrivacyFilterExperts):
    """As it is generated."""

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling() or self.config._experts_implementation not in (None, "eager"):
            return super().forward(*arguments)
        name = "transformers.models.openai_privacy_filter.modeling_openai_privacy_filter:OpenAIPrivacyFilterExperts"
        return self.loop_over_experts(name, *arguments, is_chosen=True)


class SwitchExperts(runtime.ExpertLoop, switch.SwitchTransformersExperts):
    """As it is generated."""

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(*arguments)
        name = "transformers.models.switch_transformers.modeling_switch_transformers:SwitchTransformersExperts"
        return self.loop_over_experts(name, *arguments, is_even=False)


class Layers(nn.Module):
    """Three layers of experts, as a region has them."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(make() for _ in range(3))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)

    def core(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = hidden.tanh() + layer(hidden, index, weights)
        return hidden


def dbrx_layers() -> Layers:
    return Layers(partial(DbrxExperts, DbrxFFNConfig(hidden_size=16, ffn_hidden_size=24, moe_num_experts=4)))


def filter_layers() -> Layers:
    config = OpenAIPrivacyFilterConfig(hidden_size=16, intermediate_size=24, num_local_experts=4)
    config._experts_implementation = "eager"
    return Layers(partial(FilterExperts, config))


def switch_layers() -> Layers:
    return Layers(partial(SwitchExperts, SwitchTransformersConfig(d_model=16, d_ff=24, num_experts=4)))


def routed(tokens: int = 7, *, flat: bool = False, experts: int = 4, dtype: torch.dtype = torch.float32) -> Any:
    """Hidden states, the experts of each token and their weights."""
    generator = torch.Generator().manual_seed(tokens)
    size = (2 * tokens, 16) if flat else (2, tokens, 16)
    hidden = torch.randn(size, generator=generator).to(dtype).requires_grad_()
    index = torch.randint(0, experts, (2 * tokens, 2), generator=generator)
    return hidden, index, torch.rand(2 * tokens, 2, generator=generator).to(dtype).requires_grad_()


def compiled_core(layers: Layers, backend: str = "eager") -> CompiledCore:
    return CompiledCore(type(layers).core, tag="test", options=Options(backend=backend), is_shared=False)


def run(core: CompiledCore, layers: Layers, arguments: tuple[torch.Tensor, ...]) -> torch.Tensor:
    names = ("hidden", "index", "weights")
    result: torch.Tensor = core(layers, dict(zip(names, arguments, strict=True)))
    return result


def require_equal(core: CompiledCore, layers: Layers, arguments: Any, *, has_gradients: bool = True) -> None:
    """Values and gradients of what is compiled are those of eager, to the last bit."""
    results = []
    for function in (layers.core, partial(run, core, layers)):
        out = function(*arguments) if function == layers.core else function(arguments)
        wanted = [each for each in (arguments[0], arguments[2], *layers.parameters()) if each.requires_grad]
        found = torch.autograd.grad(out.float().square().sum(), wanted) if has_gradients else ()
        results.append((out, *found))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("make", [dbrx_layers, filter_layers])
def test_values_and_gradients_are_eagers(make: Callable[[], Layers], backend: str) -> None:
    layers = make()
    core = compiled_core(layers, backend)
    for tokens in (7, 5, 12):
        require_equal(core, layers, routed(tokens, flat=make is filter_layers))
    # One graph, for all values and sizes.
    assert core.backend.graphs == 1
    # Experts that no token is sent to: their rows of the parameters' gradients are zeros.
    require_equal(core, layers, routed(7, flat=make is filter_layers, experts=1))
    assert core.backend.graphs == 1


def test_inductor_computes_the_same() -> None:
    layers, arguments = dbrx_layers(), routed()
    out = run(compiled_core(layers, "inductor"), layers, arguments)
    torch.testing.assert_close(out, layers.core(*arguments))


@pytest.mark.parametrize("make", [dbrx_layers, filter_layers, switch_layers])
def test_without_gradients_and_in_other_modes(make: Callable[[], Layers]) -> None:
    layers = make().eval()
    flat = make is not dbrx_layers
    hidden, index, weights = routed(flat=flat)
    if make is switch_layers:
        index, weights = nn.functional.one_hot(index[:, :1], 4), weights[:, :1]
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            require_equal(compiled_core(layers), layers, (hidden, index, weights), has_gradients=False)
    layers.bfloat16()
    with torch.no_grad():
        arguments = (hidden.bfloat16(), index, weights.bfloat16())
        require_equal(compiled_core(layers), layers, arguments, has_gradients=False)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("make", [dbrx_layers, filter_layers])
def test_half_precision_and_autocast(make: Callable[[], Layers], backend: str) -> None:
    layers = make()
    core = compiled_core(layers, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        require_equal(core, layers, routed(flat=make is filter_layers))
    layers.bfloat16()
    require_equal(compiled_core(layers, backend), layers, routed(flat=make is filter_layers, dtype=torch.bfloat16))


def test_frozen_parameters_and_copies() -> None:
    layers = dbrx_layers()
    layers.layers[1].requires_grad_(False)
    core = compiled_core(layers)
    require_equal(core, layers, routed())
    other = copy.deepcopy(layers)
    nn.init.normal_(other.layers[0].mlp.w1)
    # No parameter is a constant of the graph.
    require_equal(core, other, routed())
    nn.init.normal_(layers.layers[0].mlp.w1)
    require_equal(core, layers, routed())


@pytest.mark.parametrize("make", [dbrx_layers, switch_layers])
def test_layers_share_a_graph(make: Callable[[], Layers]) -> None:
    layers, (hidden, index, weights) = make().eval(), routed(flat=make is switch_layers)
    if make is switch_layers:
        index, weights = nn.functional.one_hot(index[:, :1], 4), weights[:, :1]
    core = CompiledCore(call, tag="test", options=Options(backend="eager"), is_shared=True)
    with torch.no_grad():
        for layer in layers.layers:
            out = core(layer, {"hidden": hidden, "index": index, "weights": weights})
            assert torch.equal(out, layer(hidden, index, weights))
    assert core.backend.graphs == 1


def call(layer: nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = layer(hidden, index, weights)
    return found


def test_parameters_of_experts_without_tokens_keep_no_gradient() -> None:
    layers, (hidden, index, weights) = switch_layers().eval(), routed(flat=True)
    arguments = (hidden, nn.functional.one_hot(index[:, :1], 4), weights[:, :1])
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="no token is sent to have no gradient"):
        run(compiled_core(layers), layers, arguments)
    layers.requires_grad_(False)
    with torch.no_grad():
        require_equal(compiled_core(layers), layers, arguments, has_gradients=False)


class Plain(nn.Module):
    """An activation of somebody's own, which can't be told as text: its function has no name."""

    def __init__(self) -> None:
        super().__init__()
        self.function = lambda states: states.tanh()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.function(states)


class Marked(torch.Tensor):
    """A tensor that isn't a plain one, as quantised ones aren't."""


def hook_inside(experts: Any) -> None:
    experts.mlp.register_forward_hook(lambda *_: None)


def hook_before(experts: Any) -> None:
    experts.mlp.activation_fn.register_forward_pre_hook(lambda *_: None)


def own_activation(experts: Any) -> None:
    experts.mlp.activation_fn = Plain()


def own_forward(experts: Any) -> None:
    experts.mlp.forward = type(experts.mlp).forward.__get__(experts.mlp)


def other_tensor(experts: Any) -> None:
    experts.mlp.w1 = nn.Parameter(experts.mlp.w1.detach().as_subclass(Marked))


def part_in_eval(experts: Any) -> None:
    experts.mlp.activation_fn.train(not experts.training)


def dropout(experts: Any) -> None:
    experts.mlp.activation_fn = nn.Dropout(0.5)


def tied(experts: Any) -> None:
    experts.mlp.v1 = experts.mlp.w1


def buffer(experts: Any) -> None:
    experts.mlp.register_buffer("scale", torch.ones(1))


CHANGES = {
    hook_inside: "hooks",
    hook_before: "hooks",
    own_activation: "function",
    own_forward: "forward of its own",
    other_tensor: "Marked",
    part_in_eval: "in training",
    dropout: "random",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_modules_stop_the_graph(change: Callable[[Any], None]) -> None:
    layers = dbrx_layers()
    core = compiled_core(layers)
    run(core, layers, routed())
    # Also where there is a graph already.
    change(layers.layers[1])
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match=CHANGES[change]):
        run(core, layers, routed())


@pytest.mark.parametrize(("change", "reason"), [(tied, "twice"), (buffer, "buffers")])
def test_other_tensors_stop_the_graph(change: Callable[[Any], None], reason: str) -> None:
    layers = dbrx_layers()
    change(layers.layers[1])
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match=reason):
        run(compiled_core(layers), layers, routed())


def test_other_plain_modules_and_attributes_are_seen() -> None:
    layers = dbrx_layers()
    core = compiled_core(layers)
    require_equal(core, layers, routed())
    for name in ("gelu", "gelu_pytorch_tanh", "relu"):
        layers.layers[1].mlp.activation_fn = ACT2FN[name]
        if name == "gelu_pytorch_tanh" and not isinstance(vars(ACT2FN[name]).get("act"), partial):
            continue
        require_equal(core, layers, routed())
    layers = Layers(
        partial(
            DbrxExperts,
            DbrxFFNConfig(hidden_size=16, ffn_hidden_size=24, moe_num_experts=4, ffn_act_fn={"name": "leaky_relu"}),
        )
    )
    core = compiled_core(layers)
    for slope in (0.5, 2.0):
        layers.layers[1].mlp.activation_fn.negative_slope = slope
        require_equal(core, layers, routed())
    layers.layers[1].mlp.activation_fn = ACT2FN["gelu"]
    require_equal(core, layers, routed())
    layers.layers[1].mlp.activation_fn.act = torch.nn.functional.relu
    require_equal(core, layers, routed())
    layers, arguments = filter_layers(), routed(flat=True)
    core = compiled_core(layers)
    for limit in (7.0, 0.01):
        layers.layers[1].limit = limit
        require_equal(core, layers, arguments)


# But for a tensor of another kind, over which Dynamo stumbles in upstream's forward.
@pytest.mark.parametrize("change", [each for each in CHANGES if each is not other_tensor])
def test_graphs_of_others_break_there(change: Callable[[Any], None]) -> None:
    layers = dbrx_layers()
    change(layers.layers[1])
    arguments = routed()
    torch._dynamo.reset()
    torch.manual_seed(1)
    found = torch.compile(layers.core, backend="eager", dynamic=True)(*arguments)
    torch.manual_seed(1)
    torch.testing.assert_close(found, layers.core(*arguments), rtol=0, atol=0)


def test_hooks_on_the_experts_themselves_are_called() -> None:
    layers = dbrx_layers()
    layers.layers[0].register_forward_hook(lambda module, given, out: out * 2)
    require_equal(compiled_core(layers), layers, routed())


def test_another_number_of_dimensions_stops_the_graph() -> None:
    layers = dbrx_layers()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="a way that isn't known"):
        run(compiled_core(layers), layers, routed(flat=True))


def test_another_implementation_of_experts_runs() -> None:
    layers = filter_layers()
    layers.layers[0].config._experts_implementation = "batched_mm"
    with torch.no_grad():
        require_equal(compiled_core(layers), layers, routed(flat=True), has_gradients=False)


def test_layers_with_other_numbers_share_no_graph() -> None:
    first, second, third = filter_layers().layers
    assert first.likeness == second.likeness
    second.limit, third.mark = 3.0, object()
    assert first.likeness != second.likeness
    assert third.likeness == ""


def test_a_description_is_alike_for_layers_and_makes_the_module() -> None:
    layers = switch_layers()
    kind = "transformers.models.switch_transformers.modeling_switch_transformers:SwitchTransformersExperts"
    first, second = (describe_structure(layer, kind) for layer in layers.layers[:2])
    assert first == second
    parameters = list(layers.layers[0].parameters())
    with assembled(first, parameters) as made, assembled(first, parameters) as other:
        assert made is not other
        assert type(made) is switch.SwitchTransformersExperts
        assert all(each is own for each, own in zip(made.parameters(), parameters, strict=True))
        assert made["expert_1"].wi.weight is layers.layers[0]["expert_1"].wi.weight
    with pytest.raises(StructureError, match="isn't a subclass"):
        describe_structure(nn.Linear(1, 1), kind)


@pytest.mark.parametrize(
    ("package", "name"), [("dbrx", "DbrxModel"), ("openai_privacy_filter", "OpenAIPrivacyFilterModel")]
)
def test_training_steps_are_upstreams(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, made = built.built_pair(package, name, tmp_path, monkeypatch)
    for length in (9, 6):
        ids = tiny.text(2, length) % made.config.vocab_size
        built.require_equal_steps(upstream, generated, {"input_ids": ids})
    (count,) = runtime.counters().values()
    assert not count.fallbacks
    assert count.compiles == count.variants


def test_no_cuda_graph_is_made_of_what_the_host_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, generated, made = built.built_pair("openai_privacy_filter", "OpenAIPrivacyFilterModel", tmp_path, monkeypatch)
    ids = tiny.text(2, 9) % made.config.vocab_size
    runners = generated.__dict__["_vgen_variants"].runners
    for implementation, kind in (("eager", CompiledCore), ("grouped_mm", GraphedCore)):
        generated.set_experts_implementation(implementation)
        runners.clear()
        with torch.no_grad():
            generated(ids)
        assert [type(each) for each in runners.values()] == [kind]


SERVED = """
import sys
from contextlib import nullcontext
from pathlib import Path
import torch
from built_experts.dbrx import DbrxModel
from transformers.models.dbrx.modeling_dbrx import DbrxModel as Upstream
from vgen.runtime import counters
from vgen.runtime.building import building
from vgen.verify.making import make_tiny
made = make_tiny(Upstream)
torch.manual_seed(0)
upstream, model = Upstream(made.config).eval(), DbrxModel(made.config).eval()
model.load_state_dict(upstream.state_dict())
ids = torch.arange(18).view(2, 9)
with torch.no_grad(), building(Path(sys.argv[2])) if sys.argv[1] == "build" else nullcontext():
    found, expected = (each(ids, use_cache=False).last_hidden_state for each in (model, upstream))
torch.testing.assert_close(found, expected)
count = counters()["dbrx.decoder"]
assert (count.loaded, count.compiles) == (1, 0), count
"""


@pytest.mark.slow
def test_another_process_runs_what_was_compiled_ahead_of_time(tmp_path: Path) -> None:
    built.require_served("dbrx", "built_experts", SERVED, tmp_path)


def test_generated_models_without_gradients_are_upstreams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, generated, made = built.built_pair("longcat_flash", "LongcatFlashModel", tmp_path, monkeypatch)
    for length in (9, 6):
        ids = tiny.text(2, length) % made.config.vocab_size
        with torch.no_grad():
            theirs, ours = (model.eval()(ids, use_cache=False).last_hidden_state for model in (upstream, generated))
        assert torch.equal(ours, theirs)
    assert not runtime.counters()["longcat_flash.decoder"].fallbacks
    # In training its experts are left to upstream: some compute nothing, and then no parameter has a gradient.
    built.require_equal_steps(upstream.train(), generated.train(), {"input_ids": ids})
    (reason,) = runtime.counters()["longcat_flash.decoder"].fallbacks
    assert "no token is sent to have no gradient" in reason
