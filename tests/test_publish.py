"""Publishing: all or nothing, nobody else's files, and nothing left behind."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgen.codegen import publish as publishing
from vgen.codegen.compare import DriftKind, compare, unified_diff
from vgen.codegen.errors import VgenError
from vgen.codegen.lock import Lock, digest, render_lock
from vgen.codegen.publish import publish


def package(**texts: str) -> dict[str, str]:
    """Files with a lock: `package(a="1")` has `a.py`."""
    files = {f"{name.replace('__', '/')}.py": text for name, text in texts.items()}
    lock = Lock(
        model="sample",
        vgen="0.1.0",
        transformers="5.23.0",
        granularity="auto",
        standalone=False,
        templates="",
        upstream={},
        outputs={path: digest(text) for path, text in files.items()},
    )
    return {**files, "vgen.lock": render_lock(lock)}


def snapshot(folder: Path) -> Mapping[str, tuple[bytes, int] | None]:
    """Every path below with content and time of change; folders have neither."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
    }


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in folder.rglob("*") if path.is_file()
    }


def test_a_first_publish_writes_everything(tmp_path: Path) -> None:
    files = package(a="é\n", sub__b="2\n")
    (report,) = publish([(tmp_path / "deep" / "sample", files)])
    assert report.written == ("a.py", "sub/b.py", "vgen.lock")
    assert texts(tmp_path / "deep" / "sample") == files


def test_unchanged_files_keep_their_time_and_stale_ones_go(tmp_path: Path) -> None:
    publish([(tmp_path, package(a="1\n", b="2\n", sub__c="3\n"))])
    before = snapshot(tmp_path)
    (report,) = publish([(tmp_path, package(a="1\n", b="changed\n"))])
    after = snapshot(tmp_path)
    assert (report.written, report.unchanged, report.removed) == (("b.py", "vgen.lock"), ("a.py",), ("sub/c.py",))
    assert after["a.py"] == before["a.py"]
    assert set(after) == {"a.py", "b.py", "vgen.lock"}


def test_files_that_were_edited_or_arent_vgens_are_named(tmp_path: Path) -> None:
    publish([(tmp_path, package(a="1\n", stale="2\n"))])
    (tmp_path / "a.py").write_text("edited\n")
    (tmp_path / "stale.py").write_text("edited\n")
    (tmp_path / "b.py").write_text("mine\n")
    before = snapshot(tmp_path)
    with pytest.raises(VgenError) as raised:
        publish([(tmp_path, package(a="new\n", b="new\n"))])
    assert raised.value.code == "foreign-file"
    assert "a.py, stale.py were edited since vgen wrote them and b.py was not written by vgen" in str(raised.value)
    assert snapshot(tmp_path) == before
    (report,) = publish([(tmp_path, package(a="new\n", b="new\n"))], force=True)
    assert report.removed == ("stale.py",)
    assert texts(tmp_path) == package(a="new\n", b="new\n")


def test_a_foreign_file_with_the_same_content_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1\n")
    (report,) = publish([(tmp_path, package(a="1\n"))])
    assert report.unchanged == ("a.py",)


def test_other_python_files_stay_until_force(tmp_path: Path) -> None:
    publish([(tmp_path, package(a="1\n"))])
    (tmp_path / "mine.py").write_text("mine\n")
    (tmp_path / "notes.md").write_text("mine\n")
    (report,) = publish([(tmp_path, package(a="1\n"))])
    assert report.kept == ("mine.py",)
    (report,) = publish([(tmp_path, package(a="1\n"))], force=True)
    assert report.removed == ("mine.py",)
    assert set(texts(tmp_path)) == {"a.py", "vgen.lock", "notes.md"}


def test_force_removes_nothing_where_there_was_no_lock(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("mine\n")
    (report,) = publish([(tmp_path, package(a="1\n"))], force=True)
    assert (report.removed, report.kept) == ((), ("mine.py",))


def test_one_refusal_and_no_folder_is_touched(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.py").write_text("mine\n")
    with pytest.raises(VgenError):
        publish([(tmp_path / "one", package(a="1\n")), (tmp_path / "two", package(a="2\n"))])
    assert texts(tmp_path) == {"two/a.py": "mine\n"}
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("failing", range(1, 13))
def test_a_failure_at_any_step_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The n-th of all calls that change the disk fails, as on a full disk."""
    old, new = tmp_path / "old", tmp_path / "new"
    publish([(old, package(a="1\n", b="2\n", stale="3\n"))])
    before = snapshot(tmp_path)
    calls = 0

    def limited(name: str) -> None:
        original = getattr(Path, name)

        def call(self: Path, *arguments: object, **keywords: object) -> object:
            nonlocal calls
            # Putting back and clearing away must still work: those aren't counted.
            undoing = name == "replace" and self.name.endswith(".vgen-old")
            clearing = name == "unlink" and self.name.startswith(".")
            if tmp_path in self.parents and not undoing and not clearing:
                calls += 1
                if calls == failing:
                    raise OSError(errno.ENOSPC, "No space left on device", str(self))
            return original(self, *arguments, **keywords)

        monkeypatch.setattr(Path, name, call)

    for name in ("mkdir", "write_bytes", "replace", "unlink"):
        limited(name)
    # 12 in all: 1 folder made, 2 and 3 files staged, as many renamed, 1 removed.
    with pytest.raises(VgenError, match="nothing was changed") as raised:
        publish([(old, package(a="x\n", b="2\n")), (new, package(c="4\n", d="5\n"))])
    monkeypatch.undo()
    assert raised.value.code == "cannot-write"
    assert snapshot(tmp_path) == before


def test_an_interrupt_puts_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish([(tmp_path, package(a="1\n", b="2\n"))])
    before = snapshot(tmp_path)
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        result = replace(self, target)
        if self.name.endswith(".vgen-new"):
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish([(tmp_path, package(a="x\n", b="y\n"))])
    assert snapshot(tmp_path) == before


def test_what_a_killed_build_left_is_swept(tmp_path: Path) -> None:
    publish([(tmp_path, package(a="1\n"))])
    (tmp_path / ".a.py.vgen-new").write_text("half")
    (tmp_path / ".a.py.vgen-old").write_text("old")
    publish([(tmp_path, package(a="1\n"))])
    assert set(texts(tmp_path)) == {"a.py", "vgen.lock"}


def test_without_hard_links_it_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    publish([(tmp_path, package(a="1\n"))])
    publish([(tmp_path, package(a="2\n"))])
    assert texts(tmp_path) == package(a="2\n")


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(VgenError, match="A file stands where a folder is needed"):
        publish([(tmp_path / "out" / "sample", package(a="1\n"))])
    (tmp_path / "sample" / "a.py").mkdir(parents=True)
    with pytest.raises(VgenError, match="or the reverse"):
        publish([(tmp_path / "sample", package(a="1\n"))])
    assert texts(tmp_path) == {"out": "a file"}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs Unix permissions")
def test_a_folder_that_isnt_writable_is_an_error(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "sample"
        publish([(folder, package(a="1\n"))])
        before = snapshot(folder)
        Path(name).chmod(0o755)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may write anywhere
        try:
            with pytest.raises(VgenError, match="Permission denied") as raised:
                publish([(folder, package(a="2\n"))])
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)
        assert str(folder) in str(raised.value)
        assert "Give yourself the right to write there" in str(raised.value)
        assert snapshot(folder) == before


def test_builds_at_once_dont_mix(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    contents = [package(**{f"m{number}": f"{writer}\n" for number in range(8)}) for writer in range(6)]

    def write(files: dict[str, str]) -> None:
        publish([(folder, files) for folder in (folders if len(files) % 2 else folders[::-1])])

    threads = [threading.Thread(target=write, args=(files,)) for files in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts(folders[0]) == texts(folders[1])
    assert texts(folders[0]) in contents


def test_it_waits_for_another_build_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_PATIENCE", 0.05)
    with publishing._exclusive([tmp_path]), pytest.raises(VgenError, match="Another vgen") as raised:
        publish([(tmp_path, package(a="1\n"))])
    assert raised.value.code == "busy"
    assert texts(tmp_path) == {}


def test_a_name_that_leads_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="isn't a path inside"):
        publish([(tmp_path / "sample", {"../a.py": ""})])


bodies = st.dictionaries(st.sampled_from(["a", "b", "c", "sub__d"]), st.text(max_size=3), min_size=1)


@given(bodies, bodies)
def test_after_a_publish_nothing_differs(first: dict[str, str], second: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        publish([(folder, package(**first))])
        drifts = compare(folder, package(**second))
        (report,) = publish([(folder, package(**second))])
        assert {drift.path for drift in drifts} == {*report.written, *report.removed}
        assert compare(folder, package(**second)) == ()
        assert texts(folder) == package(**second)


def test_compare_tells_changed_missing_and_extra_apart(tmp_path: Path) -> None:
    publish([(tmp_path, package(a="1\n", b="2\n"))])
    (tmp_path / "a.py").write_text("x\n")
    (tmp_path / "b.py").unlink()
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "notes.md").write_text("no concern of vgen's")
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    (cache / "a.py").write_text("")
    drifts = compare(tmp_path, package(a="1\n", b="2\n"))
    assert [(drift.kind, drift.path) for drift in drifts] == [
        (DriftKind.CHANGED, "a.py"),
        (DriftKind.MISSING, "b.py"),
        (DriftKind.EXTRA, "mine.py"),
    ]


@pytest.mark.parametrize(
    ("on_disk", "built", "lines"),
    [
        ("a\n", "b\n", ["--- a/sample/a.py", "+++ b/sample/a.py", "@@ -1 +1 @@", "-a", "+b"]),
        ("a", "a\n", [..., ..., ..., "-a", "\\ No newline at end of file", "+a"]),
        ("a\r\n", "a\n", [..., ..., ..., "-a^M", "+a"]),
        ("a\x0cb\n", "a\x0cc\n", [..., ..., ..., "-a\x0cb", "+a\x0cc"]),
        (None, "b\n", ["--- /dev/null", "+++ b/sample/a.py", "@@ -0,0 +1 @@", "+b"]),
        ("", None, ["--- a/sample/a.py", "+++ /dev/null"]),
    ],
)
def test_diffs_show_what_cannot_be_seen(
    tmp_path: Path, on_disk: str | None, built: str | None, lines: list[object]
) -> None:
    if on_disk is not None:
        (tmp_path / "a.py").write_bytes(on_disk.encode())
    (drift,) = compare(tmp_path, {} if built is None else {"a.py": built})
    shown = "\n".join(unified_diff(drift, label="sample")).split("\n")
    assert len(shown) == len(lines)
    assert all(want is ... or line == want for line, want in zip(shown, lines, strict=True))
