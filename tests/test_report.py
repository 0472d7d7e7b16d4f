"""`vgen report`: every model type has a row, and the two documents say the same."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vgen.cli import cli
from vgen.codegen import catalogue, documents
from vgen.codegen.build import Package, generate
from vgen.codegen.catalogue import Failure, all_packages
from vgen.codegen.facts import Ref, Span
from vgen.codegen.kind import kind_of
from vgen.codegen.render import templates_digest
from vgen.codegen.report import Report, Status, TypeState, make_report
from vgen.codegen.show.report import TEMPLATES, cell, link, render
from vgen.codegen.source import Source, installed

BUILT = ("bart", "bert", "clip", "gpt2", "qwen2", "qwen2_5_vl", "dac", "t5", "vit", "whisper")
"""Enough of every kind; the rest of the catalogue then has no package and says so."""


@pytest.fixture(scope="module")
def source() -> Source:
    return installed()


@pytest.fixture(scope="module")
def packages(source: Source) -> dict[str, Package | Failure]:
    return {each.model: each for each in all_packages(source, BUILT)}


@pytest.fixture(scope="module")
def report(source: Source, packages: dict[str, Package | Failure]) -> Report:
    return make_report(source, packages.values())


@pytest.fixture(scope="module")
def texts(report: Report) -> dict[str, str]:
    return dict(render(report))


class Page(HTMLParser):
    """What a browser makes of the page: the cells of the table, and every address in it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.loaded: list[str] = []
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "action"):
                (self.addresses if tag == "a" else self.loaded).append(value or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")
        if tag == "link":
            self.loaded.append("link")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def page(text: str) -> Page:
    parser = Page()
    parser.feed(text)
    return parser


def test_every_model_type_stands_in_one_row(report: Report, source: Source) -> None:
    counted = Counter(each.name for row in report.rows for each in row.types)
    assert set(counted) == set(source.folders)
    assert set(counted.values()) == {1}
    assert sum(report.types.values()) == len(source.folders) > 700
    assert [row.model for row in report.rows] == sorted(row.model for row in report.rows)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("bart", "encoder-decoder"),
        ("bert", "text encoder or decoder"),
        ("clip", "vision and text encoders"),
        ("gpt2", "text decoder"),
        ("qwen2", "text decoder"),
        ("qwen2_5_vl", "vision-language"),
        ("t5", "encoder-decoder"),
        ("vit", "vision encoder"),
        ("whisper", "audio encoder-decoder"),
    ],
)
def test_the_kind_comes_from_the_roles(model: str, kind: str, packages: dict[str, Package | Failure]) -> None:
    package = packages[model]
    assert isinstance(package, Package)
    assert kind_of(package.facts) == kind


def test_a_row_says_what_the_plan_has(report: Report) -> None:
    (row,) = (row for row in report.rows if row.model == "qwen2_5_vl")
    assert row.status is Status.BUILT
    assert {each.name: each.state for each in row.types}["qwen2_5_vl"] is TypeState.BUILT
    assert row.rewrites == ("packed-attention", "grouped-attention")
    assert "get_vision_position_ids" in row.hoisted
    assert {"seq_len", "batch_size"} <= set(row.dynamic)


def test_a_type_whose_class_is_in_another_folder(report: Report) -> None:
    (row,) = (row for row in report.rows if row.model == "gpt_sw3")
    assert row.status is Status.ELSEWHERE
    assert [(each.state, each.package) for each in row.types] == [(TypeState.ELSEWHERE, "gpt2")]


def test_what_is_not_built_has_a_reason_and_a_place(report: Report, source: Source) -> None:
    failed = [row for row in report.rows if row.status is Status.FAILED]
    assert failed
    for row in failed:
        assert row.reason
        assert row.span is not None
        assert source.find_file(row.span.file) is not None, row.span.file
    for row in report.rows:
        assert row.reason or not any(each.state is TypeState.MISSING for each in row.types), row.model


def test_a_class_that_its_package_lacks_is_named(source: Source) -> None:
    package = next(all_packages(source, ["qwen2"]))
    assert isinstance(package, Package)
    kept = tuple(ref for ref in package.plan.entries if ref.name == "Qwen2PreTrainedModel")
    package = dataclasses.replace(package, plan=dataclasses.replace(package.plan, entries=kept))
    (row,) = (row for row in make_report(source, [package]).rows if row.model == "qwen2")
    assert row.status is Status.BUILT
    assert [each.state for each in row.types] == [TypeState.MISSING]
    assert row.reason is not None
    assert "Qwen2ForCausalLM" in row.reason


def test_a_folder_without_a_model_is_a_part(report: Report) -> None:
    (row,) = (row for row in report.rows if row.model == "nougat")
    assert row.status is Status.PART


def test_totals_add_up(report: Report) -> None:
    totals = dict(report.totals)
    assert totals["packages"] == sum(count for _, count in report.kinds)
    assert totals["regions"] == totals["compiled whole"] + totals["compiled by block"]
    assert report.covered <= report.listed
    assert float(report.share) <= 100 * report.covered / report.listed < float(report.share) + 0.1


def test_the_page_needs_nothing_from_elsewhere(texts: dict[str, str]) -> None:
    html = texts["support.html"]
    parsed = page(html)
    assert parsed.loaded == []
    assert all(
        address.startswith("https://github.com/huggingface/transformers/blob/v") for address in parsed.addresses
    )
    assert "@import" not in html
    assert "url(" not in html
    assert "fetch(" not in html


def test_both_documents_have_the_same_rows(texts: dict[str, str], report: Report) -> None:
    rows = page(texts["support.html"]).rows
    names = [row.model for row in report.rows]
    assert [row[0] for row in rows[1:]] == names
    assert {len(row) for row in rows} == {10}
    lines = [line for line in texts["support.md"].splitlines() if line.count(" | ") >= 9][2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == names
    # A bar inside a cell would shift those after it.
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {11}


def test_no_dates_no_paths_and_the_same_twice(texts: dict[str, str], report: Report, source: Source) -> None:
    assert dict(render(report)) == texts
    for text in texts.values():
        assert str(source.root) not in text
        assert source.version in text


def test_markup_in_messages_is_text(report: Report) -> None:
    failure = Failure(model="vit", code="x", reason="<b>|</b> `a`", span=Span(file="transformers/a.py", line=2))
    texts = render(make_report(installed(), [failure]))
    assert "<b>|" not in texts["support.html"]
    assert "&lt;b&gt;|" in texts["support.html"]
    assert r"\<b\>\|\</b\>" in texts["support.md"]
    assert cell(()) == "–"


def test_links_only_where_there_is_a_tag() -> None:
    span = Span(file="transformers/models/a/modeling_a.py", line=7)
    assert link(span, "5.23.0") == (
        "https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/a/modeling_a.py#L7"
    )
    assert link(span, "5.24.0.dev0") is None
    assert link(span, "unknown") is None


def test_its_templates_are_no_part_of_locks() -> None:
    before = templates_digest()
    extra = TEMPLATES / "unused.j2"
    extra.write_text("x")
    try:
        assert templates_digest() == before
    finally:
        extra.unlink()


def test_a_model_that_cannot_be_built_does_not_stop_the_others(source: Source) -> None:
    first, second = all_packages(source, ["dac", "vit"])
    assert isinstance(first, Failure)
    assert first.span.file == "transformers/models/dac/modeling_dac.py"
    assert isinstance(second, Package)
    assert second.files == generate("vit", source).files


# Written and checked.


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, packages: dict[str, Package | Failure]) -> None:
    """The command, without the minutes that a build of everything takes."""
    monkeypatch.setattr(catalogue, "all_packages", lambda source, options, step: packages.values())


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(cli, ["report", *arguments])


@pytest.mark.usefixtures("few")
def test_report_writes_and_checks(tmp_path: Path, texts: dict[str, str]) -> None:
    out = tmp_path / "docs"
    checked = run("--check", "--out", str(out))
    assert (checked.exit_code, checked.stdout.count("differs"), out.exists()) == (1, 2, False)
    written = run("--out", str(out))
    assert written.exit_code == 0, written.output
    assert {path.name: path.read_text() for path in out.iterdir()} == texts
    assert run("--check", "--out", str(out)).exit_code == 0
    assert run("--out", str(out)).stdout.count("unchanged") == 2
    page = out / "support.md"
    page.write_text(page.read_text() + "more\n")
    checked = run("--check", "--out", str(out))
    assert checked.exit_code == 1
    assert f"{page}: differs" in checked.stdout
    assert f"{out / 'support.html'}: same" in checked.stdout
    assert page.read_text().endswith("more\n")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text("old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        documents.write(tmp_path, {"a.md": "new"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.md"]
    assert (tmp_path / "a.md").read_text() == "old"


def test_a_type_that_only_other_models_contain_is_a_part(report: Report) -> None:
    states = {each.name: each.state for row in report.rows for each in row.types}
    assert states["clip_text_model"] is not TypeState.MISSING
    assert states["align_text_model"] is TypeState.PART


def test_kinds_never_look_at_names(packages: dict[str, Package | Failure]) -> None:
    """The same facts under another name are of the same kind."""
    package = packages["whisper"]
    assert isinstance(package, Package)
    other = dataclasses.replace(
        package.facts,
        model="nothing",
        file="transformers/models/nothing/modeling_nothing.py",
        entries=(Ref(file="transformers/models/nothing/modeling_nothing.py", name="Nothing"),),
    )
    assert kind_of(other) == kind_of(package.facts)
