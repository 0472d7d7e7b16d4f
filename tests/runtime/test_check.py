# SPDX-License-Identifier: Apache-2.0
"""Digests, the lock, and what a generated package says when Transformers changed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vgen.runtime.check
from vgen.runtime import LockError, UpstreamChangedError, require_upstream
from vgen.runtime.digest import bytes_digest, class_digests, definitions

SOURCE = '''\
import x

@decorated
@twice(
    1)
class A(x.B):
    """A."""

    def f(self): ...

if x:
    def g(): return 1
else:
    def g(): return 2

def h(): ...
'''


def test_definitions() -> None:
    found = definitions(SOURCE, ["A", "g", "missing"])
    assert {name: each.line for name, each in found.items()} == {"A": 3, "g": 12}


def test_digests_depend_on_the_text_alone() -> None:
    digests = class_digests(SOURCE, ["A", "g", "h"])
    assert class_digests("# moved\n\n" + SOURCE.replace("\n", "\r\n"), ["A", "g", "h"]) == digests
    assert class_digests(SOURCE.replace('"""A."""', '"""A."""   '), ["A", "g", "h"]) == digests
    for old, new, name in [("twice", "thrice", "A"), ("return 2", "return 3", "g")]:
        changed = class_digests(SOURCE.replace(old, new), ["A", "g", "h"])
        assert {each for each in digests if digests[each] != changed[each]} == {name}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A generated package beside a Transformers of one file."""
    upstream = tmp_path / "site" / "transformers" / "models" / "m" / "modeling_m.py"
    upstream.parent.mkdir(parents=True)
    upstream.write_text(SOURCE)
    monkeypatch.setattr(vgen.runtime.check, "_site", lambda: tmp_path / "site")
    folder = tmp_path / "m"
    folder.mkdir()
    lock = f"""
        model = "m"
        transformers = "5.0.0"
        [upstream."transformers/models/m/modeling_m.py"]
        A = "{class_digests(SOURCE, ["A"])["A"]}"
        h = "{class_digests(SOURCE, ["h"])["h"]}"
        [files]
        "transformers/models/m/modeling_m.py" = "{bytes_digest(SOURCE.encode())}"
    """
    (folder / "vgen.lock").write_text(lock)
    return folder


def require(package: Path) -> None:
    require_upstream("some.m", str(package / "__init__.py"))


def edit(package: Path, text: str | None) -> Path:
    upstream = package.parent / "site" / "transformers" / "models" / "m" / "modeling_m.py"
    if text is None:
        upstream.unlink()
    else:
        upstream.write_text(text)
    return upstream


def test_the_same_transformers(package: Path) -> None:
    require(package)


def test_a_change_elsewhere_in_the_file(package: Path) -> None:
    edit(package, SOURCE + "\nclass New: ...\n")
    require(package)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SOURCE.replace('"A."', '"B."'), r"A \(\S+modeling_m\.py:3\)"),
        (SOURCE.replace("def h()", "def i()"), r"h \(gone from \S+modeling_m\.py\)"),
        ("class", r"A, h \(\S+modeling_m\.py can't be parsed"),
        (None, r"A, h \(the file \S+modeling_m\.py is gone\)"),
    ],
)
def test_a_change_that_matters(package: Path, text: str | None, message: str) -> None:
    edit(package, text)
    with pytest.raises(UpstreamChangedError, match=message) as error:
        require(package)
    assert "some.m was built from Transformers 5.0.0" in str(error.value)
    assert f"`vgen build m --out {os.path.relpath(package.parent)}`" in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ImportError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "it isn't there"),
        ("[upstream", "it isn't TOML"),
        ("a = 1", "has no .upstream. table"),
        ("[upstream]", "doesn't name the model"),
        ('model = "m"\ntransformers = "5"\n[upstream.x]\nA = 1', "must map names to digests"),
    ],
)
def test_a_broken_lock(package: Path, text: str | None, message: str) -> None:
    lock = package / "vgen.lock"
    if text is None:
        lock.unlink()
    else:
        lock.write_text(text)
    with pytest.raises(LockError, match=message) as error:
        require(package)
    assert f"`vgen build m --out {os.path.relpath(package.parent)} --force`" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_transformers(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgen.runtime.check, "_site", lambda: None)
    with pytest.raises(UpstreamChangedError, match=r"pip install transformers==5\.0\.0"):
        require(package)


def test_the_build_needs_no_torch() -> None:
    assert importlib.util.find_spec("torch") is not None
    code = "import sys, vgen.runtime.digest, vgen.runtime.check; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
