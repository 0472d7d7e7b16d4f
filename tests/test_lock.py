"""`vgen.lock`: the same bytes for the same lock, and a clear word about every way it can be broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgen.codegen.errors import VgenError
from vgen.codegen.lock import (
    Lock,
    changes,
    digest,
    is_inside,
    parse_lock,
    read_lock,
    read_outputs,
    render_lock,
    render_runtime_lock,
)

LOCK = Lock(
    model="sample",
    vgen="0.1.0",
    transformers="5.23.0",
    granularity="auto",
    standalone=False,
    templates="t0",
    upstream={"transformers/b.py": {"Z": "1", "A": "2"}, "transformers/a.py": {"B": "3"}},
    outputs={"modeling_sample.py": "4", "__init__.py": "5"},
)

TEXT = """\
# Written by vgen, do not edit: `vgen check` compares this package with what a build would write.
lock = 1
model = "sample"
vgen = "0.1.0"
transformers = "5.23.0"
granularity = "auto"
standalone = false
templates = "t0"

[outputs]
"__init__.py" = "5"
"modeling_sample.py" = "4"

[upstream."transformers/a.py"]
B = "3"

[upstream."transformers/b.py"]
A = "2"
Z = "1"
"""

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tables = st.dictionaries(texts, texts, max_size=4)
locks = st.builds(
    Lock,
    model=texts,
    vgen=texts,
    transformers=texts,
    granularity=st.sampled_from(["whole", "block", "auto"]),
    standalone=st.booleans(),
    templates=texts,
    upstream=st.dictionaries(texts, tables, max_size=3),
    outputs=st.dictionaries(texts.filter(is_inside), texts, max_size=4),
    files=tables,
)


def test_the_text_is_sorted_and_readable() -> None:
    assert render_lock(LOCK) == TEXT


@given(locks)
def test_what_is_written_is_read_again(lock: Lock) -> None:
    text = render_lock(lock)
    assert parse_lock(text, Path("vgen.lock")) == lock
    assert render_lock(parse_lock(text, Path("vgen.lock"))) == text


def test_digests_are_of_utf8_bytes() -> None:
    assert digest("é") == digest("é".encode())
    assert len(digest("")) == 64


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("[outputs]", "[outputs", ":10: this lock file is broken: "),
        ('"auto"', '"fast"', "granularity is 'fast'"),
        ("standalone = false", 'standalone = "no"', "`standalone` is missing or isn't true or false"),
        ('model = "sample"\n', "", "`model` is missing or isn't a string"),
        ("lock = 1\n", "", "it has no `lock = 1`"),
        ('B = "3"', "B = 3", "`upstream.transformers/a.py` is missing or isn't a table of strings"),
        ('"__init__.py"', '"../../other.py"', "isn't a path inside the package"),
        ('"__init__.py"', '"/etc/other.py"', "isn't a path inside the package"),
        ("[outputs]", "<<<<<<< ours\n[outputs]", ":10: this lock file is broken: a merge conflict is left in it."),
    ],
)
def test_a_broken_lock_is_named_with_what_to_do(tmp_path: Path, before: str, after: str, words: str) -> None:
    path = tmp_path / "sample" / "vgen.lock"
    path.parent.mkdir()
    assert before in TEXT
    path.write_text(TEXT.replace(before, after, 1))
    with pytest.raises(VgenError) as raised:
        read_lock(path)
    message = str(raised.value)
    assert raised.value.code == "broken-lock"
    assert message.startswith(str(path))
    assert words in message
    assert message.endswith(f"or write the package again: `vgen build sample --out {tmp_path} --force`.")


def test_a_lock_that_isnt_text_or_isnt_there_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "vgen.lock"
    with pytest.raises(VgenError, match="can't be read"):
        read_lock(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(VgenError, match="isn't UTF-8"):
        read_lock(path)


def test_a_lock_of_a_newer_vgen_asks_for_that_vgen(tmp_path: Path) -> None:
    path = tmp_path / "vgen.lock"
    path.write_text(TEXT.replace("lock = 1", "lock = 2"))
    with pytest.raises(VgenError, match="newer vgen") as raised:
        read_lock(path)
    assert raised.value.code == "newer-lock"


def test_the_runtimes_lock_lists_its_files(tmp_path: Path) -> None:
    path = tmp_path / "vgen.lock"
    path.write_text(render_runtime_lock("0.1.0", {"a.py": "1"}))
    assert read_outputs(path) == {"a.py": "1"}
    with pytest.raises(VgenError, match="granularity"):
        read_lock(path)


def test_changes_name_classes_first() -> None:
    new = parse_lock(
        TEXT.replace('A = "2"', 'A = "9"')
        .replace('B = "3"', 'C = "3"')
        .replace("5.23.0", "5.24.0")
        .replace("0.1.0", "0.2.0")
        .replace('"t0"', '"t1"'),
        Path("vgen.lock"),
    )
    assert changes(LOCK, new) == (
        "B is not used any more (transformers/a.py)",
        "C is used now (transformers/a.py)",
        "A changed upstream (transformers/b.py)",
        "Transformers 5.23.0 → 5.24.0",
        "vgen 0.1.0 → 0.2.0",
        "vgen's templates changed",
    )
    assert changes(LOCK, LOCK) == ()
