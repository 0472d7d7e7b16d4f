"""The command line: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vgen import __version__, cli
from vgen.codegen import build, output, rebuild
from vgen.codegen.errors import VgenError
from vgen.codegen.facts import (
    ArgumentShape,
    Child,
    ChildKind,
    ClassFact,
    Evidence,
    EvidenceSource,
    Hazard,
    HazardKind,
    Modality,
    ModelFacts,
    PrologueCall,
    Ref,
    Role,
    RoleFact,
    Span,
)
from vgen.codegen.lock import Lock, digest, render_lock
from vgen.codegen.package import Options, Package
from vgen.codegen.plan import Carrier, Granularity, Plan, Region, Rewrite
from vgen.codegen.source import Source

FILE = "transformers/models/sample/modeling_sample.py"

Run = Callable[..., Result]


def at(line: int) -> Span:
    return Span(file=FILE, line=line)


def ref(name: str) -> Ref:
    return Ref(file=FILE, name=name)


def fact(name: str, line: int, *children: Child) -> ClassFact:
    return ClassFact(
        ref=ref(name),
        bases=("nn.Module",),
        mro=(ref(name),),
        is_pretrained=True,
        init=ref(name),
        inherits_init=None,
        children=children,
        forward=None,
        span=at(line),
    )


def child(attribute: str, target: str, line: int) -> Child:
    return Child(
        attribute=attribute,
        kind=ChildKind.DIRECT,
        callee=target,
        target=ref(target),
        config="config",
        repeated=attribute == "layers",
        conditional=False,
        span=at(line),
    )


SHAPE = ArgumentShape(
    name="pixels",
    is_tensor=True,
    dims=("patches", None),
    evidence=(Evidence(source=EvidenceSource.OWN_DOCSTRING, text="of shape `(patches, 12)`", span=at(31)),),
)
CALL = PrologueCall(
    targets=("lengths",),
    keys=("lengths",),
    helper=Ref(file="transformers/sizes.py", name="get_lengths"),
    text="lengths = get_lengths(grid, kwargs=kwargs)",
    reads=("grid",),
    first_line=33,
    last_line=33,
    span=at(33),
    helper_span=Span(file="transformers/sizes.py", line=4),
)
FACTS = ModelFacts(
    model="sample",
    file=FILE,
    entries=(ref("SampleModel"), ref("SampleForCausalLM")),
    classes=(
        fact("SampleAttention", 5),
        fact("SampleVision", 20, child("layers", "SampleAttention", 22)),
        fact("SampleModel", 40, child("visual", "SampleVision", 41)),
        fact("SampleForCausalLM", 60, child("model", "SampleModel", 61)),
    ),
    roles=(
        RoleFact(
            role=Role.ENCODER,
            modality=Modality.IMAGE,
            ref=ref("SampleVision"),
            entry=ref("SampleModel"),
            path=("visual",),
            reason="SampleModel.visual: the first of get_encoder's attributes that is assigned",
            span=at(41),
        ),
    ),
    hazards=(),
)
HAZARDS = (
    Hazard(
        kind=HazardKind.HOST_READ,
        message="lengths.tolist()",
        span=at(8),
        owner=ref("SampleAttention"),
        resolved_by="packed-attention",
    ),
    Hazard(kind=HazardKind.DATA_BRANCH, message="if mask.any()", span=at(35), owner=ref("SampleVision")),
)
PLAN = Plan(
    model="sample",
    file=FILE,
    granularity=Granularity.AUTO,
    entries=FACTS.entries,
    regions=(
        Region(
            ref=ref("SampleVision"),
            tag="sample.encoder",
            role=Role.ENCODER,
            modality=Modality.IMAGE,
            granularity=Granularity.WHOLE,
            contract=(SHAPE,),
            hoisted=(CALL,),
            dropped=("grid",),
            packed_attention=True,
            rotary=False,
            records_outputs=True,
            reason="no hazard is left",
            span=at(20),
        ),
    ),
    carriers=(
        Carrier(
            ref=ref("SampleModel"),
            init=ref("SampleModel"),
            methods=(),
            base=None,
            exchanged=(child("visual", "SampleVision", 41),),
            reason="it makes SampleVision",
            span=at(40),
        ),
    ),
    rewrites=(
        Rewrite(
            ref=ref("SampleAttention"),
            rule="packed-attention",
            method="forward",
            first_line=7,
            last_line=9,
            span=at(7),
        ),
    ),
    order=(ref("SampleAttention"), ref("SampleVision"), ref("SampleModel"), ref("SampleForCausalLM")),
    hazards=HAZARDS,
    packages=(),
)


def sample(
    model: str, *, granularity: Granularity = Granularity.AUTO, standalone: bool = False, body: str = "x = 1\n"
) -> Package:
    """A package as a build would return it, with `body` in its one module."""
    classes = "".join(f"\n\nclass {each.name}:\n    pass\n" for each in PLAN.order)
    files = {"__init__.py": "", f"modeling_{model}.py": body + classes}
    lock = Lock(
        model=model,
        vgen=__version__,
        transformers="5.23.0",
        granularity=granularity.value,
        standalone=standalone,
        templates="0" * 64,
        upstream={FILE: {"SampleVision": digest(body)}},
        outputs={path: digest(text) for path, text in files.items()},
    )
    runtime = {"vgen_runtime/__init__.py": "y = 1\n"} if standalone else {}
    return Package(
        model=model,
        facts=FACTS,
        plan=PLAN,
        files={**files, "vgen.lock": render_lock(lock)},
        runtime_files=runtime,
    )


class Builds:
    """Stands in for the build: knows three models, and can be told to write another body or to fail."""

    def __init__(self) -> None:
        self.body = "x = 1\n"
        self.calls: list[tuple[str, Granularity, bool]] = []

    def generate(self, model: str, source: Source, options: Options | None = None) -> Package:
        options = options or Options()
        granularity, standalone = options.granularity, options.standalone
        self.calls.append((model, granularity, standalone))
        if model == "broken":
            raise VgenError("syntax", "Python can't parse this file.", span=at(7), hint="Correct the file.")
        return sample(model, granularity=granularity, standalone=standalone, body=self.body)


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A folder that passes for an unpacked Transformers with three models."""
    package = tmp_path / "upstream" / "transformers"
    (package / "models" / "auto").mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "5.23.0"\n')
    for model in ("sample", "sample_two", "broken"):
        (package / "models" / model).mkdir()
        (package / "models" / model / f"modeling_{model}.py").write_text("x = 1\n")
    return package.parent


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(build, "generate", builds.generate)
    monkeypatch.setattr(rebuild, "generate", builds.generate)
    return builds


@pytest.fixture
def run(builds: Builds, upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder, on the stand-in Transformers, with packages in `compiled`."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    # What a stand-in builds doesn't follow from its source, so it can't be remembered.
    monkeypatch.setenv("VGEN_CACHE", "off")

    def invoke(command: str, *arguments: str, columns: int = 100) -> Result:
        options = ["--transformers", str(upstream)] + ([] if command == "explain" else ["--out", "compiled"])
        return CliRunner(env={"COLUMNS": str(columns)}).invoke(cli.cli, [command, *arguments, *options])

    return invoke


def tree(folder: Path) -> Mapping[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_build_writes_the_package_and_says_how_to_import_it(run: Run) -> None:
    result = run("build", "sample")
    assert result.exit_code == 0, result.output
    assert set(tree(Path("compiled"))) == {"sample/__init__.py", "sample/modeling_sample.py", "sample/vgen.lock"}
    assert "from compiled.sample import SampleForCausalLM" in result.stdout
    assert 'import vgen; vgen.load("name-or-path", generated="compiled")' in result.stdout
    assert "written  __init__.py, modeling_sample.py, vgen.lock" in result.stdout


def test_build_accepts_hyphens_and_names_each_model_once(run: Run, builds: Builds) -> None:
    assert run("build", "sample-two", "sample_two").exit_code == 0
    assert builds.calls == [("sample_two", Granularity.AUTO, False)]


def test_a_second_build_changes_nothing(run: Run) -> None:
    run("build", "sample")
    before = {path: path.stat().st_mtime_ns for path in Path("compiled").rglob("*")}
    result = run("build", "sample")
    assert "unchanged  __init__.py, modeling_sample.py, vgen.lock" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in Path("compiled").rglob("*")} == before


def test_one_failing_model_and_nothing_is_written(run: Run) -> None:
    result = run("build", "sample", "broken")
    assert result.exit_code == 2
    assert not Path("compiled").exists()


def test_an_error_is_one_paragraph(run: Run) -> None:
    result = run("build", "broken", columns=60)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert " ".join(result.stderr.split()) == (f"error: {FILE}:7: Python can't parse this file. Correct the file.")
    assert max(map(len, result.stderr.splitlines())) <= 60


def test_an_unknown_model_gets_the_nearest_names(run: Run) -> None:
    result = run("build", "sampel")
    assert result.exit_code == 2
    assert "Did you mean sample" in " ".join(result.stderr.split())


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_the_table_holds_everything_at_every_width(run: Run, columns: int) -> None:
    output = run("build", "sample", columns=columns).stdout
    for text in ("sample.encoder", "SampleVision", "encoder", "whole", "patches", "get_lengths", "packed-attention"):
        assert text in output
    assert "data-branch" in output
    assert "modeling_sample.py:35" in output
    assert "host-read" not in output, "it is resolved"
    assert max(map(len, output.splitlines())) <= columns
    assert "\x1b" not in output


def test_build_json_has_the_rows_and_the_report(run: Run) -> None:
    data = json.loads(run("build", "sample", "--json").stdout)
    (package,) = data["packages"]
    (row,) = package["regions"]
    assert row["tag"] == "sample.encoder"
    assert row["dynamic_dims"] == ["patches"]
    assert row["hoisted"] == ["get_lengths"]
    assert row["rewrites"] == ["packed-attention (SampleAttention)"]
    assert row["lines"] == 4, "its class and the class of its layers"
    assert package["written"] == ["__init__.py", "modeling_sample.py", "vgen.lock"]
    assert package["import"] == "from compiled.sample import SampleForCausalLM"


def test_standalone_puts_the_runtime_beside_the_packages(run: Run) -> None:
    result = run("build", "sample", "--standalone")
    assert Path("compiled/vgen_runtime/__init__.py").read_text() == "y = 1\n"
    assert 'import compiled.vgen_runtime; compiled.vgen_runtime.load("name-or-path")' in result.stdout
    assert run("check").exit_code == 0
    Path("compiled/vgen_runtime/__init__.py").unlink()
    result = run("check")
    assert result.exit_code == 1
    assert "MISSING __init__.py" in result.stdout


def test_check_and_diff_see_no_change(run: Run) -> None:
    run("build", "sample", "sample_two")
    result = run("check")
    assert (result.exit_code, result.stdout) == (0, "sample: same\nsample_two: same\n")
    result = run("diff")
    assert (result.exit_code, result.stdout) == (0, "")


def test_check_names_files_and_the_upstream_classes_that_changed(run: Run, builds: Builds) -> None:
    run("build", "sample", "sample_two")
    Path("compiled/sample_two/__init__.py").unlink()
    Path("compiled/sample_two/mine.py").write_text("")
    result = run("check", "sample_two")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["sample_two: drift", "  MISSING __init__.py", "  EXTRA   mine.py"]
    builds.body = "x = 2\n"
    result = run("check", "sample")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "sample: drift",
        "  CHANGED modeling_sample.py",
        "  CHANGED vgen.lock",
        f"  SampleVision changed upstream ({FILE})",
    ]


def test_diff_shows_what_a_build_would_change(run: Run, builds: Builds) -> None:
    run("build", "sample")
    Path("compiled/sample/extra.py").write_text("z = 1\n")
    builds.body = "x = 2\n"
    result = run("diff", "sample")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[:4] == ["--- a/compiled/sample/extra.py", "+++ /dev/null", "@@ -1 +0,0 @@", "-z = 1"]
    assert "-x = 1" in lines
    assert "+x = 2" in lines


def test_check_and_diff_build_as_the_lock_says(run: Run, builds: Builds) -> None:
    run("build", "sample", "--granularity", "block", "--standalone")
    run("check")
    run("diff", "sample")
    assert builds.calls == [("sample", Granularity.BLOCK, True)] * 3


def test_check_of_a_model_that_isnt_built_misses_every_file(run: Run) -> None:
    result = run("check", "sample")
    assert result.exit_code == 1
    assert result.stdout.count("MISSING") == 3


def test_check_with_nothing_built_is_an_error(run: Run) -> None:
    result = run("check")
    assert result.exit_code == 2
    assert "No package is built in compiled" in result.stderr


@pytest.mark.parametrize("command", ["check", "diff", "build"])
def test_a_broken_lock_is_an_error_that_says_what_to_do(run: Run, command: str) -> None:
    run("build", "sample")
    Path("compiled/sample/vgen.lock").write_text('lock = 1\nmodel = "sample\n')
    before = tree(Path("compiled"))
    result = run(command, "sample")
    message = " ".join(result.stderr.split())
    assert result.exit_code == 2
    assert "compiled/sample/vgen.lock:2: this lock file is broken" in message
    assert "`vgen build sample --out compiled --force`" in message
    assert tree(Path("compiled")) == before
    assert run("build", "sample", "--force").exit_code == 0
    assert run("check").exit_code == 0


def test_an_edited_file_stays_until_force(run: Run, builds: Builds) -> None:
    run("build", "sample")
    edited = Path("compiled/sample/modeling_sample.py")
    edited.write_text("mine\n")
    result = run("build", "sample")
    assert result.exit_code == 2
    assert "modeling_sample.py was edited since vgen wrote it; nothing was changed." in " ".join(result.stderr.split())
    assert edited.read_text() == "mine\n"
    assert run("build", "sample", "--force").exit_code == 0
    assert edited.read_text() != "mine\n"


def test_explain_shows_facts_and_plan_with_places(run: Run) -> None:
    output = run("explain", "sample", columns=160).stdout
    for text in (
        "sample.encoder  SampleVision  modeling_sample.py:20",
        "image encoder, whole (one graph): no hazard is left",
        "SampleModel.visual: the first of get_encoder's attributes that is assigned  modeling_sample.py:41",
        "pixels  a tensor (patches, fixed)",
        "its own docstring: of shape `(patches, 12)`  modeling_sample.py:31",
        "lengths = get_lengths(…)  modeling_sample.py:33",
        "which takes kwargs['lengths'] instead of computing  sizes.py:4",
        "SampleModel  modeling_sample.py:40  it makes SampleVision",
        "self.visual = SampleVision(…): SampleVision, exchanged  modeling_sample.py:41",
        "packed-attention: SampleAttention.forward, lines 7-9  modeling_sample.py:7",
        "data-branch: if mask.any(), in SampleVision; unresolved  modeling_sample.py:35",
    ):
        assert text in output


def test_explain_json_is_the_facts_and_the_plan(run: Run) -> None:
    data = json.loads(run("explain", "sample", "--json").stdout)
    assert data["plan"]["regions"][0]["contract"][0]["dims"] == ["patches", None]
    assert data["facts"]["roles"][0]["role"] == "encoder"


def test_list_shows_built_ones_first_with_their_state(run: Run) -> None:
    run("build", "sample")
    lock = Path("compiled/sample/vgen.lock")
    assert run("list").stdout.splitlines()[:2] == ["Built (1)", "  sample   from Transformers 5.23.0, auto"]
    lock.write_text(lock.read_text().replace("5.23.0", "5.20.0"))
    data = json.loads(run("list", "--json").stdout)
    assert [(each["model"], each["state"]) for each in data["built"]] == [("sample", "stale")]
    assert data["models"] == ["broken", "sample", "sample_two"]
    lock.write_text("lock = 1\n")
    assert json.loads(run("list", "--json").stdout)["built"][0]["state"] == "broken"


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/a/file"), 2, "error: /a/file: No space left on device. Free some"),
        (PermissionError(13, "Permission denied", "/a/file"), 2, "error: /a/file: Permission denied. Check"),
    ],
)
def test_what_ends_a_build_ends_it_in_a_word(
    run: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, words: str
) -> None:
    def fail(*_: object, **__: object) -> Package:
        raise raised

    monkeypatch.setattr(build, "generate", fail)
    result = run("build", "sample")
    assert result.exit_code == code
    assert result.stderr.startswith(words)
    assert "Traceback" not in result.stderr


def test_granularities_are_the_plans() -> None:
    assert set(cli.GRANULARITIES) == {each.value for each in Granularity}


@pytest.mark.parametrize(
    ("names", "main"),
    [
        (("XModel", "XForCausalLM", "XForConditionalGeneration"), "XForConditionalGeneration"),
        (("XModel", "XForSequenceClassification", "XForCausalLM"), "XForCausalLM"),
        (("XModel", "XForSequenceClassification"), "XForSequenceClassification"),
        (("XModel",), "XModel"),
    ],
)
def test_the_entry_that_generates_is_the_one_to_import(names: tuple[str, ...], main: str) -> None:
    assert output.main_entry(names) == main


def test_the_import_line_follows_packages_and_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "src" / "project"
    project.mkdir(parents=True)
    (project / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    package = sample("sample")
    inside = output.usage(package, Path("src/project/compiled"))
    assert inside.import_line == "from project.compiled.sample import SampleForCausalLM"
    assert inside.condition == f"{tmp_path / 'src'} on Python's path"
    assert output.usage(package, Path("a/b")).import_line == "from a.b.sample import SampleForCausalLM"
    assert output.usage(package, Path()).import_line == "from sample import SampleForCausalLM"
    assert output.usage(package, output.default_folder()).import_line.startswith("from vgen.generated.sample import")


def vgen(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vgen.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", **environment},
        timeout=60,
        check=False,
    )


def test_processes_end_with_the_right_code() -> None:
    assert vgen().returncode == 0
    assert "Commands:" in vgen().stdout
    assert vgen("--version").stdout == f"vgen, version {__version__}\n"
    assert vgen("bulid").returncode == 2
    unknown = vgen("build", "no-such-model-at-all")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("error: ")
    assert "Traceback" not in unknown.stderr


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from vgen.cli import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(result.stdout.split())
    assert not loaded & {"rich", "libcst", "jinja2", "torch", "transformers", "filelock", "importlib.metadata"}
