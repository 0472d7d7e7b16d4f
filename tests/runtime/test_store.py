"""The store of artifacts: what is read is whole and the user's own, and writers never leave half of one."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vgen.runtime import store
from vgen.runtime.errors import ArtifactError

HEADER = {"key": "ab" * 32, "tag": "model.decoder", "fields": {"torch": "2"}, "refs": {}}
PAYLOAD = bytes(range(256)) * 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_what_is_written_is_read(folder: Path) -> None:
    artifact = store.read(store.write(folder, HEADER, PAYLOAD))
    assert artifact.header == HEADER
    assert artifact.payload == PAYLOAD
    assert store.paths(folder, "model.decoder") == [artifact.path]
    assert store.paths(folder, "model") == []


def test_truncation_at_every_tenth(folder: Path) -> None:
    path = store.write(folder, HEADER, PAYLOAD)
    data = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(ArtifactError, match=r"empty|truncated"):
            store.read(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 10_000_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(folder: Path, place: int, bit: int) -> None:
    data = bytearray(store.pack(HEADER, PAYLOAD))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(ArtifactError):
        store.unpack(folder / "x", bytes(data))


def test_a_foreign_file_is_noticed(folder: Path) -> None:
    path = store.write(folder, HEADER, PAYLOAD)
    path.write_bytes(b"#!/bin/sh\n" * 50)
    with pytest.raises(ArtifactError, match="no artifact"):
        store.read(path)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_may_write_is_loaded_only_if_a_manifest_lists_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = store.write(folder, HEADER, PAYLOAD)
    (path if what == "file" else folder).chmod(0o777)
    with pytest.raises(ArtifactError, match="others may write"):
        store.read(path)
    listed = tmp_path / "artifacts.toml"
    listed.write_text(store.manifest(folder))
    monkeypatch.setenv("VGEN_ARTIFACTS_MANIFEST", str(listed))
    assert store.read(path).payload == PAYLOAD
    path.write_bytes(store.pack(HEADER, PAYLOAD + b"more"))
    with pytest.raises(ArtifactError, match="others may write"):
        store.read(path)


def open_manifest(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of the artifacts in a folder that the environment names, and that others may write to."""
    listed = tmp_path / "artifacts.toml"
    listed.write_text(store.manifest(folder))
    listed.chmod(0o666)
    monkeypatch.setenv("VGEN_ARTIFACTS_MANIFEST", str(listed))
    return listed


def test_a_manifest_that_others_may_write_is_not_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.write(folder, HEADER, PAYLOAD)
    path.chmod(0o777)
    open_manifest(folder, tmp_path, monkeypatch)
    with pytest.raises(ArtifactError, match=r"others may write to .*artifacts\.toml.*VGEN_ARTIFACTS_SIGNERS"):
        store.read(path)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    """Two OpenSSH keys, and a file of allowed signers that has the first."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("signatures are checked by ssh-keygen, which isn't here")
    made = {name: tmp_path / name for name in ("known", "stranger")}
    for path in made.values():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    public = made["known"].with_suffix(".pub").read_text()
    (tmp_path / "signers").write_text(f"someone@example.org {public}")
    return made | {"signers": tmp_path / "signers"}


def _sign(path: Path, key: Path, namespace: str = "vgen-artifacts") -> None:
    path.with_name(f"{path.name}.sig").unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", str(key), str(path)], check=True)


def test_a_signed_manifest_is_trusted_wherever_it_lies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Path]
) -> None:
    path = store.write(folder, HEADER, PAYLOAD)
    path.chmod(0o777)
    listed = open_manifest(folder, tmp_path, monkeypatch)
    monkeypatch.setenv("VGEN_ARTIFACTS_SIGNERS", str(keys["signers"]))
    with pytest.raises(
        ArtifactError, match=r"artifacts\.toml\.sig isn't there; `ssh-keygen -Y sign -n vgen-artifacts"
    ):
        store.read(path)
    _sign(listed, keys["known"])
    assert store.read(path).payload == PAYLOAD
    for key, namespace in ((keys["stranger"], "vgen-artifacts"), (keys["known"], "git")):
        _sign(listed, key, namespace)
        with pytest.raises(ArtifactError, match=r"nobody of .*signers signed it as it is"):
            store.read(path)
    _sign(listed, keys["known"])
    listed.write_text(listed.read_text() + f'"more" = "{"0" * 64}"\n')
    with pytest.raises(ArtifactError, match="signed it as it is"):
        store.read(path)


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    path = store.write(folder, HEADER, PAYLOAD)
    link = folder / "link.vgenart"
    link.symlink_to(path)
    with pytest.raises(ArtifactError):
        store.read(link)


def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write(folder, HEADER, PAYLOAD)
    assert list(folder.iterdir()) == []


def _write_for_ever(folder: Path) -> None:
    while True:
        store.write(folder, HEADER, os.urandom(4_000_000))


def _write_some(folder: Path, number: int) -> None:
    for _ in range(5):
        store.write(folder, HEADER, bytes([number]) * 1_000_000)
        store.read(folder / store.file_name(HEADER["tag"], HEADER["key"]))


def test_a_killed_writer_leaves_no_half_artifact(folder: Path) -> None:
    store.write(folder, HEADER, PAYLOAD)
    for delay in (0.02, 0.05, 0.1):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(folder,))
        process.start()
        time.sleep(delay)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for path in store.paths(folder):
            store.read(path)
        assert all(each.name.startswith((".partial-", "model.decoder-")) for each in folder.iterdir())


def test_eight_writers_at_once(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_some, args=(folder, number)) for number in range(8)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(60)
        assert each.exitcode == 0
    (path,) = store.paths(folder)
    payload = store.read(path).payload
    assert hashlib.sha256(payload).digest() == hashlib.sha256(payload[:1] * 1_000_000).digest()
    assert not list(store.partials(folder))
