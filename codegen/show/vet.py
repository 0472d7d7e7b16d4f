"""The findings of `vgen vet`: for people, as JSON, as SARIF 2.1.0, and as GitHub's workflow commands."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ... import __version__
from ..facts import HazardLevel
from ..vet import ADVICE, Finding, unresolved
from .data import Json, dumps

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

STYLES = {HazardLevel.ERROR: "red", HazardLevel.WARNING: "yellow", HazardLevel.NOTE: "cyan"}
COMMANDS = {HazardLevel.ERROR: "error", HazardLevel.WARNING: "warning", HazardLevel.NOTE: "notice"}


def print_text(console: Console, found: Sequence[Finding], models: Sequence[str], root: Path) -> None:
    """Each finding with its place, its state and an advice, then a line for each model. Lines aren't wrapped, so that
    editors find the places."""
    for finding in found:
        style = "dim" if finding.resolved_by else STYLES[finding.level]
        place = f"{path(root, finding)}:{finding.span.line}:{finding.span.column + 1}: "
        line = Text.assemble((place, "bold"), (finding.level.value, style), f": {finding.message} [{finding.kind}]")
        console.print(line, soft_wrap=True)
        console.print(Text(f"    in {', '.join(finding.owners)}; {state(finding)}", style=style), soft_wrap=True)
        if finding.resolved_by is None:
            console.print(Text(f"    {finding.advice}"), soft_wrap=True)
    for model in models:
        console.print(Text(f"{model}: {_counted([each for each in found if each.model == model])}"), soft_wrap=True)


def state(finding: Finding) -> str:
    return "unresolved" if finding.resolved_by is None else f"resolved by {finding.resolved_by}"


def _counted(found: Sequence[Finding]) -> str:
    left = unresolved(found)
    levels = Counter(finding.level for finding in left)
    rules = Counter(finding.resolved_by for finding in found if finding.resolved_by is not None)
    parts = [_plural(levels[level], level.value) for level in HazardLevel if levels[level]]
    words = f"{', '.join(parts)} unresolved" if parts else "no hazards unresolved"
    resolved = ", ".join(f"{count} by {rule}" for rule, count in sorted(rules.items()))
    return f"{words}; resolved: {resolved}" if resolved else words


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def as_json(found: Sequence[Finding], models: Sequence[str], root: Path) -> str:
    """For machines."""
    rows = [
        {
            "model": finding.model,
            "kind": finding.kind,
            "level": finding.level,
            "message": finding.message,
            "file": path(root, finding),
            "line": finding.span.line,
            "column": finding.span.column + 1,
            "classes": finding.owners,
            "resolved_by": finding.resolved_by,
            "advice": finding.advice,
        }
        for finding in found
    ]
    return dumps({"models": models, "findings": rows, "unresolved": len(unresolved(found))})


def as_sarif(found: Sequence[Finding], root: Path) -> str:
    """One run of SARIF 2.1.0. What is resolved is there as a suppressed result."""
    rules: list[Json] = [
        {
            "id": kind.value,
            "shortDescription": {"text": kind.value.replace("-", " ")},
            "help": {"text": advice},
        }
        for kind, advice in ADVICE.items()
    ]
    numbers = {kind: number for number, kind in enumerate(ADVICE)}
    results: list[Json] = [_result(finding, numbers[finding.kind], root) for finding in found]
    driver: Json = {"name": "vgen", "semanticVersion": __version__, "rules": rules}
    log: Json = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def _result(finding: Finding, rule: int, root: Path) -> Json:
    region: Json = {"startLine": finding.span.line, "startColumn": finding.span.column + 1}
    place: Json = {"physicalLocation": {"artifactLocation": {"uri": path(root, finding)}, "region": region}}
    classes: list[Json] = [{"name": name, "kind": "type"} for name in finding.owners]
    result: dict[str, Json] = {
        "ruleId": finding.kind.value,
        "ruleIndex": rule,
        "level": finding.level.value,
        "message": {"text": f"{finding.message}. {finding.advice}"},
        "locations": [{**place, "logicalLocations": classes}] if isinstance(place, dict) else [],
    }
    if finding.resolved_by is not None:
        result["suppressions"] = [{"kind": "external", "justification": state(finding)}]
    return result


def as_github(found: Sequence[Finding], root: Path) -> str:
    """A workflow command for each finding that is left: GitHub shows it at its line."""
    lines = []
    for finding in unresolved(found):
        properties = {
            "file": path(root, finding),
            "line": str(finding.span.line),
            "col": str(finding.span.column + 1),
            "title": f"vgen: {finding.kind.value}",
        }
        listed = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
        lines.append(f"::{COMMANDS[finding.level]} {listed}::{_data(f'{finding.message}. {finding.advice}')}\n")
    return "".join(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def path(root: Path, finding: Finding) -> str:
    """The file as seen from the working directory where it lies below, else from the folder that holds the package; with
    forward slashes."""
    full = (root / finding.span.file).resolve()
    below = full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else Path(finding.span.file)
    return below.as_posix()
