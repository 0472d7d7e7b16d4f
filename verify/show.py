"""What `vgen verify` ends with: wrong results first, then other findings, then every region, then totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..codegen.show.console import show
from ..codegen.verified import gap
from .results import FAILING, Finding, Kind, Proof, Record, Region, Run, Settings, encode

MANY = 40
"""More packages than this, and only those with something to say have their regions listed."""

_STYLES = {
    Kind.WRONG: "bold red",
    Kind.FALLBACK: "yellow",
    Kind.BRANCH: "yellow",
    Kind.NOT_RUN: "yellow",
    Kind.UNPROVED: "yellow",
}


def as_json(settings: Settings, proofs: Sequence[Proof]) -> str:
    """For machines: the same form as the file that `--record` writes, with seconds."""
    run = Run(settings=settings, proofs=tuple(sorted(proofs, key=lambda proof: proof.model)))
    return encode(Record(runs=(run,))).decode()


def print_proofs(settings: Settings, proofs: Sequence[Proof]) -> None:
    """For people."""
    proofs = sorted(proofs, key=lambda proof: proof.model)
    parts: list[RenderableType] = []
    found = [(proof, finding) for proof in proofs for finding in proof.all_findings]
    for kind in Kind:
        own = [(proof, finding) for proof, finding in found if finding.kind is kind]
        if own:
            parts += [_findings(kind, own), ""]
    shown = [proof for proof in proofs if proof.regions and (len(proofs) <= MANY or not _is_plain(proof))]
    if shown:
        parts += [_regions(shown), ""]
    parts.append(_totals(settings, proofs))
    show(Group(*parts))


def _is_plain(proof: Proof) -> bool:
    return proof.is_proved and all(region.is_captured and region.difference is None for region in proof.regions)


def _findings(kind: Kind, found: Sequence[tuple[Proof, Finding]]) -> RenderableType:
    title = Text(f"{kind.value} ({len(found)})", style=_STYLES.get(kind, "bold" if kind in FAILING else ""))
    if kind is Kind.WRONG:
        title = Text(f"WRONG RESULTS ({len(found)})", style="bold red")
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for proof, finding in found:
        place = finding.region or ""
        where = ", ".join(each for each in (place, finding.case) if each)
        grid.add_row(
            Text(proof.model, style="bold"), Text(f"{where}: {finding.message}" if where else finding.message)
        )
    return Group(title, Padding(grid, (0, 0, 0, 2)))


def _regions(proofs: Iterable[Proof]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("region")
    table.add_column("exact")
    table.add_column("largest difference")
    for name in ("calls", "graphs", "breaks", "compiles", "variants", "fallbacks", "seconds"):
        table.add_column(name, justify="right")
    reasons: dict[str, None] = {}
    for proof in proofs:
        for region in proof.regions:
            is_short = region.compiles > region.variants
            table.add_row(
                Text(region.tag if region.tag.startswith(f"{proof.model}.") else f"{proof.model}: {region.tag}"),
                Text(f"{region.exact} of {region.cases}", style="" if region.exact == region.cases else "yellow"),
                Text(gap(region.difference)),
                str(region.calls),
                str(region.graphs),
                Text(str(region.breaks), style="yellow" if region.breaks else ""),
                Text(str(region.compiles), style="red" if is_short else ""),
                str(region.variants),
                Text(str(sum(region.fallbacks.values())), style="yellow" if region.fallbacks else ""),
                f"{region.seconds:.1f}",
            )
            if region.difference is not None and region.reason:
                allowed = f"{region.difference.allowed:.1g} of the largest value"
                reasons[f"Allowed, {allowed}: {region.reason}."] = None
    if not reasons:
        return table
    return Group(table, "", Text("\n".join(reasons)))


def _totals(settings: Settings, proofs: Sequence[Proof]) -> RenderableType:
    proved = sum(1 for proof in proofs if proof.is_proved)
    style = "bold green" if proved == len(proofs) else "bold"
    title = Text(f"{proved:,} of {len(proofs):,} packages proved", style=style)
    words = f"  torch {settings.torch}, transformers {settings.transformers}, {settings.name}"
    lines = [f"{name}: {value}" for name, value in totals(proofs).items()]
    return Group(Text.assemble(title, words), Padding(Text("\n".join(lines)), (0, 0, 0, 2)))


def totals(proofs: Iterable[Proof]) -> Mapping[str, str]:
    """Counts over packages and regions, in words."""
    regions = [region for proof in proofs for region in proof.regions]
    types = {name for proof in proofs for entry in proof.entries for name in entry.model_types}
    run = {name for proof in proofs for entry in proof.entries if entry.cases for name in entry.model_types}
    found = {
        "packages with a case that ran": _share(
            sum(1 for proof in proofs if any(entry.cases for entry in proof.entries)), len(tuple(proofs))
        ),
        "model types that ran": _share(len(run), len(types)),
    }
    for role in ("decoder", "encoder"):
        own = [region for region in regions if region.role == role]
        if own:
            found[f"{role} regions captured, exact, never recompiled"] = _share(sum(map(_is_perfect, own)), len(own))
    verdicts = Counter(case.verdict.value for proof in proofs for entry in proof.entries for case in entry.cases)
    found["cases"] = ", ".join(f"{count:,} {verdict}" for verdict, count in verdicts.most_common()) or "none"
    return found


def _is_perfect(region: Region) -> bool:
    return region.is_captured and region.exact == region.cases


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part * 1000 // max(whole, 1) / 10:.1f} %)"
