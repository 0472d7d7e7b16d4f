# SPDX-License-Identifier: Apache-2.0
"""What a key says of the code that an artifact depends on, and what is said of two keys that differ."""

import functools
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vgen.runtime import key
from vgen.runtime.fingerprint import Fingerprint, UnsuitableError
from vgen.runtime.key import differences

ACTIVATION = """
import torch

class Act(torch.nn.Module):
    def forward(self, x): return {}
"""


def test_of_a_variant_the_arguments_that_differ_are_named() -> None:
    ours = {"variant": [False, "input_ids", ["torch.Tensor", "torch.int64", -1], "use_cache", True]}
    theirs = {"variant": [False, "input_ids", ["torch.Tensor", "torch.int64", 1], "use_cache", True]}
    assert differences(ours, theirs) == ["variant.input_ids.2: -1 here, 1 there"]


def test_lists_of_other_lengths_are_told_whole() -> None:
    assert differences({"sizes": [1, 2]}, {"sizes": [1]}) == ["sizes: [1, 2] here, [1] there"]


def test_a_file_that_was_edited_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "edited_activation.py"
    path.write_text(ACTIVATION.format("torch.relu(x)"))
    module = importlib.import_module(path.stem)
    old = module.Act()
    before = key._sources(old)
    Fingerprint(old)
    path.write_text(ACTIVATION.format("x * 40"))
    os.utime(path, ns=(10**18, 10**18))
    importlib.reload(module)
    assert key._sources(module.Act()) != before
    # The file says nothing of what was made before.
    with pytest.raises(UnsuitableError, match=r"edited_activation\.Act, which no import finds"):
        Fingerprint(old)


def test_a_class_of_no_file_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    place = ModuleType("no_file")
    monkeypatch.setitem(sys.modules, "no_file", place)
    exec(ACTIVATION.format("x"), place.__dict__)
    with pytest.raises(UnsuitableError, match="no_file, which has no source file"):
        key._sources(place.Act())


def test_an_attention_that_takes_the_name_of_another_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    module = nn.Identity()
    module.config = type("Config", (), {"_attn_implementation": "sdpa"})
    assert any("sdpa_attention_forward" in each for each in key._attention(module))
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", functools.wraps(sdpa)(lambda *_: None))
    with pytest.raises(UnsuitableError, match="registered by somebody else"):
        key._attention(module)
