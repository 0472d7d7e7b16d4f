"""A store that can't be trusted, read or written: said once, and the region compiles instead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from served import PROMPT, EagerCore, make

import vgen.runtime as runtime
from vgen.runtime import region
from vgen.runtime.building import building
from vgen.runtime.errors import ArtifactError


def flip(place: float) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(len(data) * place)] ^= 1
        path.write_bytes(data)

    return damage


def cut(tenths: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * tenths // 10])


DAMAGES: dict[str, Callable[[Path], object]] = (
    {f"a flipped bit at {place}": flip(place) for place in (0.0, 0.00001, 0.001, 0.3, 0.9, 0.99999)}
    | {f"{tenths} tenths left": cut(tenths) for tenths in range(10)}
    | {
        "a script": lambda path: path.write_bytes(b"#!/bin/sh\n" * 99),
        "others may write": lambda path: path.chmod(0o666),
        "others may write to the folder": lambda path: path.parent.chmod(0o777),
        "of another key": lambda path: path.rename(path.with_name("llama.decoder-0.vgenart")),
        "a folder in its place": lambda path: (path.unlink(), path.mkdir()),
        "a link to it": lambda path: (
            path.rename(path.with_suffix(".moved")),
            path.symlink_to(path.with_suffix(".moved")),
        ),
    }
)


@pytest.mark.parametrize("name", DAMAGES)
def test_the_region_compiles_instead(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = Path(shutil.copytree(store, tmp_path / "store"))
    for path in sorted(folder.glob("*.vgenart")):
        DAMAGES[name](path)
    monkeypatch.setenv("VGEN_STORE", str(folder))
    monkeypatch.setattr(region, "CompiledCore", EagerCore)
    runtime.reset_counters()
    upstream, generated = make()
    with torch.no_grad():
        for _ in range(3):
            found = generated(input_ids=PROMPT, use_cache=False).logits
            torch.testing.assert_close(found, upstream(input_ids=PROMPT, use_cache=False).logits)
    count = runtime.counters()["llama.decoder"]
    assert (count.loaded, count.compiles) == (0, 1)
    said = [each.getMessage() for each in caplog.records if str(folder) in each.getMessage()]
    assert len(said) == (0 if name == "of another key" else 1), said


def test_off_and_require(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime.reset_counters()
    monkeypatch.setattr(region, "CompiledCore", EagerCore)
    monkeypatch.setenv("VGEN_STORE", str(store))
    monkeypatch.setenv("VGEN_ARTIFACTS", "off")
    with torch.no_grad():
        make()[1](input_ids=PROMPT, use_cache=False)
        assert runtime.counters()["llama.decoder"].loaded == 0
        monkeypatch.setenv("VGEN_ARTIFACTS", "require")
        make()[1](input_ids=PROMPT, use_cache=False)
        assert runtime.counters()["llama.decoder"].loaded == 1
        with pytest.raises(ArtifactError, match=r"the nearest one differs in .*variant"):
            make()[1](input_ids=PROMPT.int(), use_cache=False)
        monkeypatch.setenv("VGEN_STORE", str(tmp_path))
        with pytest.raises(ArtifactError, match="there is none of this region"):
            make()[1](input_ids=PROMPT, use_cache=False)
        monkeypatch.setenv("VGEN_ARTIFACTS", "sometimes")
        with pytest.raises(ArtifactError, match="off, read or require"):
            make()[1](input_ids=PROMPT, use_cache=False)


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(region, "CompiledCore", EagerCore)
    runtime.reset_counters()
    upstream, generated = make()
    monkeypatch.setattr(os, "fsync", full)
    with torch.no_grad(), building(tmp_path / "store"):
        found = generated(input_ids=PROMPT, use_cache=False).logits
        torch.testing.assert_close(found, upstream(input_ids=PROMPT, use_cache=False).logits)
    assert not list((tmp_path / "store").glob("*.vgenart"))
    assert not list((tmp_path / "store").glob(".partial*"))
    assert runtime.counters()["llama.decoder"].compiles == 1


def test_two_models_of_a_process_share_what_is_loaded(served: tuple[Any, Any], store: Path) -> None:
    _, other = make()
    with torch.no_grad():
        other(input_ids=PROMPT, use_cache=False)
    one = {form for _, form, _ in served[1].model.__dict__["_vgen_variants"].forms._recent}
    assert {form for _, form, _ in other.model.__dict__["_vgen_variants"].forms._recent} <= one
