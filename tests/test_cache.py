"""The cache: a hit is what a build would give, anything else is a miss, and no damage to it is ever noticed."""

from __future__ import annotations

import gc
import pickle
import shutil
import subprocess
import sys
import weakref
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_python, run_vgen
from upstreams import copy_upstream, edit_upstream

from vgen.codegen import build, cached
from vgen.codegen.cache import Cache, cache_of
from vgen.codegen.codec import UndecodableError, decode, encode
from vgen.codegen.package import NO_REGION, Failure, Options, Package
from vgen.codegen.plan import Granularity
from vgen.codegen.source import Source, folder, installed

MODEL = "qwen2"
MODELING = "transformers/models/qwen2/modeling_qwen2.py"
NOTHING = Options()
HEAD = "class Qwen2ForCausalLM("


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache is, switched on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VGEN_CACHE")
    return tmp_path / "home" / "vgen"


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    return copy_upstream(tmp_path / "upstream")


@pytest.fixture(scope="module")
def package() -> Package:
    return build.generate(MODEL, installed())


def open_cache(source: Source) -> Cache:
    cache = cache_of(source)
    assert cache is not None
    return cache


def results(home: Path) -> list[Path]:
    return sorted(home.glob("*/results/*"))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are really built from now on."""
    found: list[str] = []
    generate: Callable[..., Package] = build.generate

    def counting(model: str, source: Source, options: Options = NOTHING) -> Package:
        found.append(model)
        return generate(model, source, options)

    monkeypatch.setattr(build, "generate", counting)
    return found


def test_a_package_survives_the_way_there_and_back(package: Package) -> None:
    assert decode(encode(package), {}) == package


def test_a_failure_survives_too() -> None:
    span = replace(installed().span(build.generate(MODEL, installed()).plan.entries[0]), column=3)
    failure = Failure(model="a", code=NO_REGION, reason="No röle.", span=span, hint=None)
    assert decode(encode(failure), {}) == failure


def test_damage_is_told_from_a_package(package: Package) -> None:
    data, refused = encode(package), 0
    for position in range(0, len(data), max(1, len(data) // 300)):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        try:
            # A reference to text that stands there twice may point to the other one.
            assert decode(bytes(damaged), {}) == package
        except UndecodableError:
            refused += 1
        with pytest.raises(UndecodableError):
            decode(data[:position], {})
    assert refused > 290


@pytest.mark.parametrize("content", [b"", b"\xc0", b"\x80", pickle.dumps(print), b"[1, 2]"])
def test_what_isnt_a_record_is_refused(content: bytes) -> None:
    with pytest.raises(UndecodableError):
        decode(zlib.compress(content), {})


def test_the_second_build_is_read(home: Path, monkeypatch: pytest.MonkeyPatch, package: Package) -> None:
    built = counted(monkeypatch)
    assert cached.generate(MODEL, installed()) == package
    assert cached.generate(MODEL, installed()) == package
    assert built == [MODEL]


def test_options_and_models_are_told_apart(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted(monkeypatch)
    for _ in range(2):
        cached.generate(MODEL, installed())
        cached.generate(MODEL, installed(), Options(granularity=Granularity.BLOCK))
        alone = cached.generate(MODEL, installed(), Options(standalone=True))
        assert "vgen_runtime/region.py" in alone.runtime_files
        cached.generate("llama", installed())
    assert built == [MODEL, MODEL, MODEL, "llama"]


def test_every_file_that_was_read_counts(home: Path, tmp_path: Path) -> None:
    """Each of them in turn is changed, or made where there was none: then what was built before isn't found."""
    original = installed().fresh()
    build.generate(MODEL, original)
    root = tmp_path / "few"
    for path in (*original.read, "transformers/__init__.py"):
        if (original.root / path).is_file():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(original.root / path, root / path)
    (root / "transformers" / "models" / "auto").mkdir(exist_ok=True)
    cached.generate(MODEL, folder(root))
    fresh = folder(root).fresh()
    build.generate(MODEL, fresh)
    assert {MODELING, "transformers/modeling_layers.py"} <= set(fresh.read)

    def hit() -> bool:
        return open_cache(folder(root)).key(MODEL, Options()) is not None

    assert hit()
    for path, digest in fresh.read.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        before = (root / path).read_bytes() if digest is not None else b""
        (root / path).write_bytes(before + b"\n")
        assert not hit(), path
        (root / path).unlink()
        assert hit() == (digest is None), path
        if digest is not None:
            (root / path).write_bytes(before)
        assert hit(), path


def test_an_edit_and_its_undoing(home: Path, upstream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted(monkeypatch)
    cached.generate(MODEL, folder(upstream))
    edit_upstream(upstream, MODELING, HEAD, f"# A comment.\n{HEAD}")
    cached.generate(MODEL, folder(upstream))
    edit_upstream(upstream, MODELING, f"# A comment.\n{HEAD}", HEAD)
    cached.generate(MODEL, folder(upstream))
    assert built == [MODEL, MODEL]


def test_another_version_of_transformers_is_another_result(home: Path) -> None:
    """The lock names it, so the text isn't the same even where no file differs."""
    source = installed()
    cached.generate(MODEL, source)
    other = Source(root=source.root, version="0.0")
    assert open_cache(other).key(MODEL, Options()) is None
    assert 'transformers = "0.0"' in cached.generate(MODEL, other).files["vgen.lock"]


def test_vgens_own_code_is_part_of_the_key(home: Path, tmp_path: Path) -> None:
    """A copy of vgen with one comment more finds nothing, and the same copy finds what it built."""
    import vgen

    copy = tmp_path / "copy" / "vgen"
    for part in ("codegen", "runtime", "templates"):
        shutil.copytree(Path(vgen.__file__).parent / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "cli.py"):
        shutil.copy(Path(vgen.__file__).parent / name, copy / name)

    def versions(count: int) -> None:
        command = ["-m", "vgen.cli", "build", MODEL, "--out", str(tmp_path / "out")]
        done = run_python(command, cwd=tmp_path, PYTHONPATH=str(tmp_path / "copy"))
        assert done.returncode == 0, done.stderr
        assert len(list(home.iterdir())) == count

    versions(1)
    versions(1)
    for number, name in enumerate(("codegen/plan.py", "templates/modeling.py.j2", "runtime/digest.py")):
        with (copy / name).open("a") as file:
            file.write("{# #}" if name.endswith("j2") else "# More.\n")
        versions(min(number + 2, 3))  # the oldest is forgotten


def test_damaged_entries_are_built_anew(home: Path, monkeypatch: pytest.MonkeyPatch, package: Package) -> None:
    built = counted(monkeypatch)
    cached.generate(MODEL, installed())
    for damage in (b"", b"nonsense", pickle.dumps([1])):
        (result,) = results(home)
        sound = result.read_bytes()
        result.write_bytes(damage)
        assert cached.generate(MODEL, installed()) == package
        assert result.read_bytes() == sound
    for damage in (b"", b"{", b"7", b'[[1], "a"]', b"\xff"):
        (inputs,) = home.glob("*/inputs/*")
        inputs.write_bytes(damage)
        assert cached.generate(MODEL, installed()) == package
    assert len(built) == 9
    cached.generate(MODEL, installed())
    assert len(built) == 9


def test_it_may_be_deleted(home: Path, package: Package) -> None:
    cached.generate(MODEL, installed())
    cache = open_cache(installed())
    shutil.rmtree(home)
    cache.keep(MODEL, Options(), {}, package)
    assert cached.generate(MODEL, installed()) == package


def test_a_cache_that_cant_be_written_is_done_without(home: Path, package: Package) -> None:
    home.parent.mkdir()
    home.write_text("a file where the folder should be")
    assert cached.generate(MODEL, installed()) == package


def test_switched_off_it_writes_nothing(home: Path, tmp_path: Path) -> None:
    assert run_vgen("build", MODEL, "--out", str(tmp_path / "out"), VGEN_CACHE="off").returncode == 0
    assert not home.exists()


def test_failures_that_may_pass_arent_kept(home: Path, package: Package) -> None:
    cache = open_cache(installed())
    span = package.plan.regions[0].span
    for code in ("formatter", "unreadable", "defect"):
        cache.keep(MODEL, Options(), {}, Failure(model=MODEL, code=code, reason="x", span=span))
    assert not results(home)


def test_builds_at_once_share_it(home: Path, tmp_path: Path) -> None:
    """Four at a time, on an empty cache: none fails, all write the same, and no stray file stays."""
    command = [sys.executable, "-m", "vgen.cli", "build", MODEL, "llama", "--out"]
    running = [
        subprocess.Popen([*command, str(tmp_path / f"out{number}")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(4)
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    texts = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (tmp_path / f"out{number}" for number in range(4))
    ]
    assert texts[0]
    assert all(text == texts[0] for text in texts)
    assert len(results(home)) == 2
    assert not [path for path in home.rglob("*") if path.name.startswith(".")]


def test_a_hit_needs_no_parser(home: Path, tmp_path: Path) -> None:
    """LibCST, Jinja and the formatter take longer to import than a package to read."""
    command = ["-X", "importtime", "-m", "vgen.cli", "build", MODEL, "--out", str(tmp_path / "out")]
    cold, warm = run_python(command), run_python(command)
    assert warm.returncode == 0, warm.stderr[-2000:]
    imported = [
        {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
        for done in (cold, warm)
    ]
    heavy = {"libcst", "jinja2", "ruff", "vgen.codegen.build"}
    assert heavy <= imported[0]
    assert not heavy & imported[1]


def test_a_source_is_let_go_of() -> None:
    """Nothing keeps what one model's build read: memory would grow with every model of a build of all."""
    source = installed()
    fresh = source.fresh()
    build.generate(MODEL, fresh)
    gone = weakref.ref(fresh)
    file = weakref.ref(fresh.file("transformers/models/qwen2/modeling_qwen2.py"))
    fresh.forget()
    del fresh, source
    gc.collect()
    assert gone() is None
    assert file() is None
