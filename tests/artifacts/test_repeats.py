"""A call that repeats one that was let through is found without Dynamo's guards on the cache, and nothing else is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from served import PROMPT
from transformers import StaticCache
from transformers.cache_utils import Cache, StaticLayer

from vgen.runtime.artifact import Form
from vgen.runtime.repeats import Repeats

Arguments = dict[str, Any]


class Step:
    """A decode step that was made three times: its form, and the arguments of its core."""

    def __init__(self, model: Any) -> None:
        self.module = model.model
        self.cache = StaticCache(config=model.config, max_cache_len=32)
        with torch.no_grad():
            for ids in (PROMPT, *[self.ids(1)] * 3):
                model(input_ids=ids, past_key_values=self.cache, use_cache=True)
        self.form: Form = self.module.__dict__["_vgen_variants"].forms._recent[0][1]
        self.arguments = self.given(self.ids(1), self.cache)

    @staticmethod
    def ids(count: int) -> torch.Tensor:
        return PROMPT[:, :count].clone(memory_format=torch.contiguous_format)

    def given(self, ids: torch.Tensor, cache: Any) -> Arguments:
        names = ("attention_mask", "position_ids", "inputs_embeds")
        return dict.fromkeys(names) | {"input_ids": ids, "past_key_values": cache, "use_cache": True}

    def accepts(self, arguments: Arguments) -> bool:
        """What the form says; Dynamo's guards have to say the same."""
        scope = arguments | {"self": self.module, "kwargs": {}}
        with torch.no_grad():
            expected = bool(self.form._check(scope))
            assert self.form.accepts(self.module, arguments) is expected
        return expected


@pytest.fixture
def step(served: tuple[Any, Any]) -> Iterator[Step]:
    made = Step(served[1])
    assert made.form._repeats.has(made.arguments)
    yield made
    # Forms are shared by all models of a key.
    made.form._repeats = Repeats()


def test_other_values_repeat_a_call(step: Step) -> None:
    layer = step.cache.layers[0]
    layer.keys.fill_(3)
    layer.cumulative_length.add_(1)
    assert step.form._repeats.has(step.given(torch.zeros(2, 1, dtype=torch.long), step.cache))
    assert step.accepts(step.arguments)


def test_a_cache_that_changes_each_time_is_not_looked_at_for_long(step: Step) -> None:
    found = []
    for count in range(5):
        step.cache.layers[0].count = count
        assert step.accepts(step.arguments)
        found.append(step.form._repeats._last is not None)
    assert found == [True, False, False, False, False]


def transpose(layer: Any) -> None:
    layer.keys.data = layer.keys.mT.contiguous().mT


def exchange(cache: Any) -> None:
    cache.layers[0] = type(cache.layers[0])(32)


class OtherLayer(StaticLayer):
    """Of another class, and nothing else."""


CHANGES: dict[str, Callable[[Any], object]] = {
    "a state of another dtype": lambda c: setattr(c.layers[0], "keys", c.layers[0].keys.double()),
    "a state of another dtype, in place": lambda c: setattr(c.layers[0].values, "data", c.layers[0].values.double()),
    "a state of other strides": lambda c: transpose(c.layers[0]),
    "one more head": lambda c: setattr(c.layers[0], "keys", c.layers[0].keys.repeat(1, 2, 1, 1)),
    "a tensor twice": lambda c: setattr(c.layers[0], "values", c.layers[0].keys),
    "a mark": lambda c: torch._dynamo.mark_dynamic(c.layers[0].keys, 0),
    "an attribute": lambda c: setattr(c.layers[0], "is_initialized", False),
    "a method of its own": lambda c: setattr(c.layers[0], "get_seq_length", lambda: 0),
    "a method of the cache's own": lambda c: setattr(c, "get_seq_length", lambda: 0),
    "another layer": exchange,
    "a layer less": lambda c: c.layers.clear(),
    "a layer of another class": lambda c: setattr(c.layers[0], "__class__", OtherLayer),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_cache_is_noticed(step: Step, name: str) -> None:
    CHANGES[name](step.cache)
    assert not step.form._repeats.has(step.arguments)
    assert not step.accepts(step.arguments)


def test_a_change_of_its_classes_is_noticed(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StaticLayer, "is_sliding", True)
        assert not step.form._repeats.has(step.arguments)
        assert not step.accepts(step.arguments)
    assert step.accepts(step.arguments)
    assert step.form._repeats.has(step.arguments)
    with monkeypatch.context() as patch:
        patch.setattr(Cache.get_seq_length, "__defaults__", (1,))
        assert not step.accepts(step.arguments)
    assert step.accepts(step.arguments)


OTHERS: dict[str, Callable[[Step], Arguments]] = {
    "another cache": lambda s: s.given(s.ids(1), StaticCache(config=s.module.config, max_cache_len=32)),
    "no cache": lambda s: s.given(s.ids(1), None),
    "more ids": lambda s: s.given(s.ids(2), s.cache),
    "ids of other strides": lambda s: s.given(PROMPT[:, :1], s.cache),
    "more rows": lambda s: s.given(s.ids(1)[:1], s.cache),
    "ids of a subclass": lambda s: s.given(torch.nn.Parameter(s.ids(1), requires_grad=False), s.cache),
    "positions": lambda s: s.arguments | {"position_ids": s.ids(1)},
    "one of the cache's tensors": lambda s: s.arguments | {"position_ids": s.cache.layers[0].cumulative_length},
    "another value": lambda s: s.arguments | {"use_cache": False},
    "an equal value": lambda s: s.arguments | {"use_cache": 1},
    "one more": lambda s: s.arguments | {"output_attentions": True},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_arguments_are_no_repetition(step: Step, name: str) -> None:
    arguments = OTHERS[name](step)
    assert not step.form._repeats.has(arguments)
    with torch.no_grad():
        assert not step.form.accepts(step.module, arguments)


def test_guards_on_other_arguments_are_asked_in_any_case(step: Step) -> None:
    assert not step.accepts(step.given(step.ids(1).int(), step.cache))
    marked = step.ids(1)
    torch._dynamo.mark_dynamic(marked, 0)
    assert not step.accepts(step.given(marked, step.cache))
    assert step.accepts(step.arguments)


def test_guards_on_the_interpreter_are_asked_in_any_case(step: Step) -> None:
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **kwargs or {})

    with Mode():
        assert not step.accepts(step.arguments)
    assert step.accepts(step.arguments)


def test_nothing_is_kept_of_a_cache_that_is_gone(step: Step) -> None:
    states = weakref.ref(step.cache.layers[0].keys)
    del step.cache, step.arguments
    gc.collect()
    assert states() is None
