"""`pytest --vgen-verify path/to/generated`: the proofs of `vgen verify` as tests, for people who vendor packages.

One test for each package and group of cases. Nothing heavy is imported unless the option is given, and torch only in the
process that proves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .results import Case, Finding, Proof
    from .run import Request

GROUPS = ("made", "forward", "training", "generate", "compiles", "checks")
"""What a package's tests are: its models can be made, the results of each way to call them, nothing compiles needlessly,
and what else must hold of a generated class."""


class ProofError(Exception):
    """A package isn't proved; the message has a line for each finding."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vgen", "vgen: prove generated packages")
    group.addoption(
        "--vgen-verify",
        metavar="FOLDER",
        action="append",
        default=[],
        help="Prove the generated packages of a folder.",
    )
    group.addoption(
        "--vgen-backend", choices=("eager", "aot_eager", "inductor"), default="eager", help="For the proofs."
    )
    group.addoption("--vgen-sweep", choices=("short", "whole"), default="whole", help="How much is run of each model.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vgen_verify: a proof of a generated package")


def pytest_sessionstart(session: pytest.Session) -> None:
    # Before anything is collected: of what pytest-xdist's workers raise while they collect, nothing is told.
    for folder in _folders(session.config):
        _models(folder)


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    for folder in _folders(config):
        items += _items(session, folder)


def _folders(config: pytest.Config) -> list[Path]:
    return [(config.invocation_params.dir / name).resolve() for name in config.getoption("--vgen-verify")]


def _models(folder: Path) -> tuple[str, ...]:
    from ..codegen.errors import VgenError
    from . import packages

    try:
        return packages.select(folder, (), everything=True)
    except VgenError as error:
        raise pytest.UsageError(str(error)) from error


def _items(session: pytest.Session, folder: Path) -> Iterator[pytest.Item]:
    proofs = _Proofs(session, folder)
    for model in _models(folder):
        for group in GROUPS:
            yield ProofItem.from_parent(
                session,
                name=f"{model}[{group}]",
                nodeid=f"vgen::{folder.name}/{model}[{group}]",
                asked=(model, group, proofs),
            )


class _Proofs:
    """The proofs of a folder: made in one go, for the packages that have tests left to run."""

    def __init__(self, session: pytest.Session, folder: Path) -> None:
        self._session = session
        self._folder = folder
        self._running: Iterator[Proof] | None = None
        self._known: dict[str, Proof] = {}

    def of(self, model: str) -> Proof:
        from . import run

        if self._running is None:
            self._running = run.run(self._request())
        while model not in self._known:
            proof = next(self._running)
            self._known[proof.model] = proof
        return self._known[model]

    def _request(self) -> Request:
        from .cases import Sweep
        from .run import Request

        wanted = dict.fromkeys(
            item.model for item in self._session.items if isinstance(item, ProofItem) and item.proofs is self
        )
        option = self._session.config.getoption
        return Request(
            folder=self._folder,
            models=tuple(wanted),
            backend=option("--vgen-backend"),
            device="cpu",
            dtype="float32",
            sweep=Sweep(option("--vgen-sweep")),
            jobs=1,
        )


class ProofItem(pytest.Item):
    """One group of cases of one package."""

    def __init__(self, *, asked: tuple[str, str, _Proofs], **rest: Any) -> None:
        super().__init__(**rest)
        self.model, self.group, self.proofs = asked
        self.add_marker("vgen_verify")
        # With pytest-xdist and --dist loadgroup a package is proved by one process.
        self.add_marker(pytest.mark.xdist_group(f"vgen-{self.model}"))

    def runtest(self) -> None:
        proof = self.proofs.of(self.model)
        findings = [each for each in proof.all_findings if _group(each, proof) == self.group]
        from .results import FAILING, Kind

        failing = [each for each in findings if each.kind in FAILING]
        if failing:
            raise ProofError("\n".join(_line(self.model, each) for each in failing))
        notes = [_line(self.model, each) for each in findings if each.kind is not Kind.UNPROVED]
        if notes:
            self.add_report_section("call", "fallbacks", "\n".join(notes))
        if self.group == "made" and not any(entry.cases for entry in proof.entries):
            pytest.skip("; ".join(each.message for each in proof.all_findings) or "nothing ran")
        if self.group in ("forward", "training", "generate") and not _cases(proof, self.group):
            pytest.skip("no such case applies to it, or upstream can't run it")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, ProofError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.proofs._folder / self.model, None, f"vgen: {self.name}"


def _cases(proof: Proof, group: str) -> Sequence[Case]:
    ways = _ways()
    return [case for entry in proof.entries for case in entry.cases if ways.get(case.name) == group]


def _ways() -> dict[str, str]:
    from .cases import CASES

    return {case.name: case.way.value for case in CASES}


def _group(finding: Finding, proof: Proof) -> str:
    """The test that a finding belongs to."""
    from .results import Kind

    match finding.kind:
        case Kind.CHECK:
            return "checks"
        case Kind.RECOMPILE | Kind.VARIANTS | Kind.BRANCH | Kind.FALLBACK | Kind.NOT_RUN:
            return "compiles"
        case _:
            return _ways().get(finding.case or "", "made")


def _line(model: str, finding: Finding) -> str:
    place = ", ".join(each for each in (finding.region, finding.case) if each)
    return f"{model}: {finding.kind.value}: {f'{place}: ' if place else ''}{finding.message}"
