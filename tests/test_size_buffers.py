"""Whole numbers in buffers: they are found where sizes are computed from them, and a graph computes what upstream computes,
whatever they hold."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import built
import pytest
import torch
from conftest import run_vgen
from torch import nn
from transformers import MimiConfig
from transformers.models.mimi.modeling_mimi import MimiConv1d
from upstreams import copy_upstream, edit_upstream

import vgen.runtime as runtime
from vgen.codegen.analyze.size_buffers import SizeBuffers, of_class
from vgen.codegen.analyze.trees import Trees
from vgen.codegen.facts import Ref
from vgen.codegen.source import Source, folder, installed
from vgen.runtime import divide_rounding_up
from vgen.runtime.building import building
from vgen.runtime.size_buffers import EXACT

MIMI = Ref(file="transformers/models/mimi/modeling_mimi.py", name="MimiConv1d")
NAMES = ("stride", "kernel_size", "padding_total")
PADDING = "_get_extra_padding_for_conv1d"


def found_in(source: Source, ref: Ref) -> SizeBuffers | None:
    return of_class(source, Trees(source), ref)


def methods(source: Source, ref: Ref = MIMI) -> set[str]:
    found = found_in(source, ref)
    return {each.tree.method.name.value for each in found.methods} if found is not None else set()


def test_what_is_found_in_all_models() -> None:
    source, found = installed(), {}
    for file in map(source.modeling_file, source.models()):
        for name in file.definitions:
            sizes = found_in(source, Ref(file=file.rel, name=name))
            if sizes is not None:
                found[name] = sizes
    assert found.keys() == {"EncodecConv1d", "MimiConv1d", "PocketTTSAudioTokenizerConv1d"}
    for sizes in found.values():
        assert sizes.names == NAMES
        assert [(each.tree.method.name.value, each.returns_number) for each in sizes.methods] == [
            (PADDING, True),
            ("forward", False),
        ]


LENGTH = "        length = hidden_states.shape[-1]\n        n_frames"
LEFT = {
    "written elsewhere": (
        "    def forward(self, hidden_states, padding_cache=None):\n        extra",
        "    def grow(self):\n        self.stride += 1\n\n    def forward(self, hidden_states, padding_cache=None):\n        extra",
        {"forward"},
    ),
    "in the state dict": ("self.stride = nn.Buffer(stride, persistent=False)", "self.stride = nn.Buffer(stride)", set()),
    "made a float": ("stride = torch.tensor(self.conv.stride[0], dtype=torch.int64)", "stride = torch.tensor(self.conv.stride[0])", set()),
    "not a size": (LENGTH, LENGTH.replace("hidden_states.shape[-1]", "hidden_states.sum()"), {"forward"}),
    "its dtype read": (LENGTH, LENGTH.replace("        n_", "        kind = self.stride.dtype\n        n_"), {"forward"}),
    "made a fraction": ("        ideal_length = n_frames * self.stride + self.kernel_size - self.padding_total\n\n", "        n_frames = n_frames * 1.5\n        ideal_length = n_frames * self.stride + self.kernel_size - self.padding_total\n\n", {"forward"}),
    "returned as a tensor": ("        extra_padding = self._get_extra_padding_for_conv1d(hidden_states)\n", "        extra_padding = self._get_extra_padding_for_conv1d(hidden_states)\n        hidden_states = hidden_states * extra_padding.float()\n", {"forward"}),
    "called from elsewhere": ("class MimiResnetBlock(nn.Module):\n", "def padding(layer, states):\n    return layer._get_extra_padding_for_conv1d(states)\n\n\nclass MimiResnetBlock(nn.Module):\n", {"forward"}),
    "not said to be ints": ("paddings: tuple[int, int], mode", "paddings, mode", set()),
}  # fmt: skip
"""Edits of MimiConv1d, and the methods that are still rewritten after each."""


@pytest.mark.parametrize("edit", LEFT)
def test_what_is_not_known_to_be_a_size_is_left(edit: str, tmp_path: Path) -> None:
    old, new, kept = LEFT[edit]
    copy_upstream(tmp_path / "upstream")
    edit_upstream(tmp_path / "upstream", MIMI.file, old, new)
    assert methods(folder(tmp_path / "upstream")) == kept


@pytest.mark.parametrize("added", [-1, 0, 1, 3])
@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 320, 1920, 65537])
def test_the_division_is_upstreams(divisor: int, added: int) -> None:
    bound = (EXACT - (abs(added) + 1) * divisor) // 2
    near = [end + step for end in (0, bound // 2, bound // divisor * divisor) for step in range(-40, 41)]
    for dividend in (sign * each for each in near for sign in (1, -1)):
        upstream = torch.ceil(torch.tensor(dividend) / torch.tensor(divisor) + added).to(torch.int64)
        found = divide_rounding_up(dividend, divisor, added=added)
        assert int(found) == int(upstream)
        assert isinstance(found, int) == (abs(dividend) < bound)


@pytest.mark.parametrize(("dividend", "divisor"), [(EXACT // 2, 3), (7, 0), (7, -2)])
def test_what_float32_has_not_is_left_to_it(dividend: int, divisor: int) -> None:
    found = divide_rounding_up(dividend, divisor, added=1)
    assert isinstance(found, torch.Tensor)
    assert found.equal(torch.ceil(torch.tensor(dividend) / torch.tensor(divisor) + 1).to(torch.int64))


@pytest.mark.parametrize(
    ("package", "name"),
    [("mimi", "MimiEncoderModel"), ("pocket_tts_audio_tokenizer", "PocketTTSAudioTokenizerEncoderModel")],
)
def test_values_and_gradients_are_upstreams(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, generated, _ = built.built_pair(package, name, tmp_path, monkeypatch)
    for length in (2001, 4000, 3777, 5003):
        built.require_equal_steps(upstream, generated, {"input_values": torch.randn(2, 1, length)}, "latents")
    (count,) = runtime.counters().values()
    assert not count.fallbacks
    assert count.compiles == count.variants == 1


@pytest.fixture(scope="module")
def conv1d(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Any]]:
    """The class that is generated for MimiConv1d."""
    site = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        assert run_vgen("build", "mimi", "--out", "sized", cwd=site).returncode == 0
        patch.syspath_prepend(str(site))
        yield importlib.import_module("sized.mimi").__dict__["modeling_mimi"].MimiConv1d


class Pads(runtime.Compiled, nn.Module):
    """A region of one convolution."""

    region = runtime.Region(
        "pads.encoder",
        role=runtime.Role.ENCODER,
        contract=runtime.Contract(hidden_states=runtime.tensor("batch_size", None, "sequence_length")),
        text=True,
    )

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden_states: torch.Tensor) -> Any:
        return self.region(self, hidden_states=hidden_states)

    def core(self, hidden_states: torch.Tensor) -> Any:
        return self.conv(hidden_states)


def pair(
    conv1d: type[Any], *, causal: bool = True, pad_mode: str = "constant", backend: str = "eager"
) -> tuple[Pads, Any]:
    """A region of the generated class, and upstream's with the same weights."""
    config = MimiConfig(use_causal_conv=causal, pad_mode=pad_mode)
    torch.manual_seed(0)
    upstream = MimiConv1d(config, 1, 2, kernel_size=5, stride=3).eval()
    with runtime.options(backend=backend):
        region = Pads(conv1d(config, 1, 2, kernel_size=5, stride=3)).eval()
    region.conv.load_state_dict(upstream.state_dict())
    runtime.reset_counters()
    return region, upstream


def require_equal(region: Pads, upstream: Any, length: int = 40) -> None:
    states = torch.randn(2, 1, length)
    assert torch.equal(region(states), upstream(states))
    # Nobody else's graph is to find the numbers.
    assert region.conv.vgen_sizes == {}


@torch.no_grad()
def test_one_graph_serves_all_lengths(conv1d: type[Any]) -> None:
    region, upstream = pair(conv1d)
    for length in range(20, 60):
        require_equal(region, upstream, length)
    count = runtime.counters()["pads.encoder"]
    assert not count.fallbacks
    assert count.compiles == count.variants == 1


@torch.no_grad()
def test_what_is_written_or_exchanged_counts(conv1d: type[Any]) -> None:
    region, upstream = pair(conv1d)
    require_equal(region, upstream)
    for both in (region.conv, upstream):
        both.stride.fill_(4)
    require_equal(region, upstream)
    for both in (region.conv, upstream):
        both.padding_total = torch.tensor(9)
    require_equal(region, upstream)
    for both in (region.conv, upstream):
        both.stride.data.fill_(7)
    require_equal(region, upstream)
    for both in (region.conv, upstream):
        both.stride.fill_(3)
        both.padding_total = torch.tensor(2)
    require_equal(region, upstream)
    count = runtime.counters()["pads.encoder"]
    assert not count.fallbacks
    assert count.compiles == count.variants == 4


@torch.no_grad()
def test_calls_in_several_threads_keep_the_numbers(conv1d: type[Any]) -> None:
    region, upstream = pair(conv1d)
    require_equal(region, upstream)
    states = [torch.randn(2, 1, length) for length in range(40, 200)]
    with ThreadPoolExecutor(4) as pool:
        for given, found in zip(states, pool.map(torch.no_grad()(region), states), strict=True):
            assert torch.equal(found, upstream(given))
    assert not runtime.counters()["pads.encoder"].fallbacks
    assert region.conv.vgen_sizes == {}


@pytest.mark.parametrize("other", [torch.tensor(3, dtype=torch.int32), torch.tensor([3])])
@torch.no_grad()
def test_another_kind_of_buffer_is_upstreams(conv1d: type[Any], other: torch.Tensor) -> None:
    region, upstream = pair(conv1d)
    for both in (region.conv, upstream):
        both.stride = other.clone()
    require_equal(region, upstream)
    assert runtime.counters()["pads.encoder"].fallbacks


@torch.no_grad()
def test_another_module_in_its_place_is_read(conv1d: type[Any]) -> None:
    region, upstream = pair(conv1d)
    require_equal(region, upstream)
    other, upstream = pair(conv1d, pad_mode="replicate")
    for both in (other.conv, upstream):
        both.stride.fill_(4)
    region.conv = other.conv
    require_equal(region, upstream)
    assert not runtime.counters()["pads.encoder"].fallbacks


@torch.no_grad()
def test_in_a_graph_of_somebody_else_it_is_upstreams(conv1d: type[Any]) -> None:
    region, upstream = pair(conv1d)
    require_equal(region, upstream)
    for both in (region.conv, upstream):
        both.stride.fill_(4)
    states = torch.randn(2, 1, 40)
    assert torch.equal(torch.compile(region.conv, backend="eager")(states), upstream(states))


@torch.no_grad()
def test_what_is_too_long_leaves_shorter_calls_compiled(conv1d: type[Any]) -> None:
    region, upstream = pair(conv1d)
    states = torch.randn(2, 1, EXACT // 2 + 5)
    assert torch.equal(region(states), upstream(states))
    assert sum(runtime.counters()["pads.encoder"].fallbacks.values()) == 1
    require_equal(region, upstream)
    count = runtime.counters()["pads.encoder"]
    assert sum(count.fallbacks.values()) == count.compiles == 1


@torch.no_grad()
def test_attributes_that_are_no_buffers_stay_tensors(conv1d: type[Any]) -> None:
    region, upstream = pair(conv1d, causal=False)
    require_equal(region, upstream)
    assert runtime.counters()["pads.encoder"].fallbacks


@torch.no_grad()
def test_an_artifact_is_for_the_numbers_that_it_was_made_with(
    conv1d: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region, _ = pair(conv1d, backend="inductor")
    with building(tmp_path):
        region(torch.randn(2, 1, 40))
    monkeypatch.setenv("VGEN_STORE", str(tmp_path))
    region, upstream = pair(conv1d, backend="inductor")
    for stride, loaded in ((3, 1), (3, 2), (4, 2), (3, 3), (3, 4)):
        for both in (region.conv, upstream):
            both.stride.fill_(stride)
        states = torch.randn(2, 1, 40)
        torch.testing.assert_close(region(states), upstream(states))
        assert runtime.counters()["pads.encoder"].loaded == loaded
    assert not runtime.counters()["pads.encoder"].fallbacks
