"""`vgen report`: the support matrix as Markdown and as one HTML page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from ..facts import Span
from ..report import Report, Row

TEMPLATES = Path(__file__).resolve().parent.parent.parent / "templates" / "report"

_RELEASE = re.compile(r"\d+\.\d+\.\d+")


def render(report: Report) -> Mapping[str, str]:
    """File name → text: the same content twice."""
    return {f"support.{kind}": _template(f"report.{kind}.j2").render(report=report) for kind in ("html", "md")}


def hazard_counts(row: Row) -> tuple[str, ...]:
    """`2 data-shape`, `1 host-read`."""
    counted = Counter(hazard.kind for hazard in row.hazards)
    return tuple(f"{count} {kind}" for kind, count in sorted(counted.items()))


def region_names(row: Row) -> tuple[tuple[str, str], ...]:
    """Class and role of each region; a layer class that several parts repeat once."""
    found = ((region.ref.name, f"{region.modality.value} {region.role.value}") for region in row.regions)
    return tuple(dict.fromkeys(found))


def link(span: Span, version: str) -> str | None:
    """Where a reader finds a place: upstream's repository at the tag of a release, None for other versions."""
    if not _RELEASE.fullmatch(version):
        return None
    return f"https://github.com/huggingface/transformers/blob/v{version}/src/{span.file}#L{span.line}"


def cell(items: Sequence[str], separator: str = "<br>") -> str:
    """The text of a Markdown cell; a dash stands for none."""
    return separator.join(_markdown(item) for item in items) or "–"


def breakable(text: str) -> Markup:
    """HTML of a name that a narrow cell breaks after an underscore."""
    return Markup(str(escape(text)).replace("_", "_<wbr>"))


def coded(text: str) -> Markup:
    """HTML of a message whose source text stands in backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*<>\[\]])", r"\\\1", text)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=name.endswith(".html.j2"),
    )
    environment.globals.update(hazard_counts=hazard_counts, region_names=region_names, link=link)
    environment.filters.update(cell=cell, breakable=breakable, coded=coded)
    return environment.get_template(name)
