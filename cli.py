"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import errno
import gc
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from . import __version__

if TYPE_CHECKING:
    from .codegen.package import Options
    from .codegen.rebuild import Comparison
    from .codegen.source import Source
    from .codegen.vet import Finding

GRANULARITIES = ("whole", "block", "auto")
"""As `codegen.plan.Granularity` has them; spelled out, so that `--help` needn't import it."""

LEVELS = ("error", "warning", "note")
"""As `codegen.facts.HazardLevel` has them."""

SAME, DRIFT, FAILED, INTERRUPTED = 0, 1, 2, 130

F = TypeVar("F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """Bad input: one paragraph on standard error, no traceback."""

    exit_code = FAILED

    def show(self, file: IO[Any] | None = None) -> None:
        import textwrap

        width = max(40, shutil.get_terminal_size((100, 24)).columns)
        text = textwrap.fill(f"error: {self.message}", width=width, break_long_words=False, break_on_hyphens=False)
        click.echo(text, file=file, err=file is None)


class Commands(click.Group):
    """Turns the errors that a user can do something about into one paragraph each."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly when the reader of a pipe has gone
            raise Failure(_describe(error)) from error
        except Exception as error:
            from .codegen.errors import VgenError

            if isinstance(error, VgenError):
                raise Failure(str(error)) from error
            raise


def _describe(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            hint = "Free some space and try again."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            hint = "Check the permissions, or choose another folder with --out."
        case _:
            hint = "Check that the path exists and can be read."
    return f"{place}{error.strerror or error}. {hint}"


def out_option(command: F) -> F:
    return click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the packages, if not vgen's own."
    )(command)


def transformers_option(command: F) -> F:
    return click.option(
        "--transformers",
        "transformers",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Another unpacked Transformers to read, in place of the installed one.",
    )(command)


def granularity_option(command: F) -> F:
    return click.option(
        "--granularity",
        type=click.Choice(GRANULARITIES),
        default="auto",
        show_default=True,
        help="One graph for a whole region, one for each repeated layer class, or whichever can be had.",
    )(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="The same for machines.")(command)


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vgen")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Writes compiled subclasses of Transformers models as Python source."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command(short_help="Write the packages of models.")
@click.argument("models", metavar="MODEL...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every model of Transformers; one that fails stops no other.")
@click.option("--jobs", type=click.IntRange(min=1), help="With --all: processes; one for each processor, up to 4.")
@out_option
@granularity_option
@click.option("--standalone", is_flag=True, help="Put the runtime beside the packages: they then import no vgen.")
@click.option("--force", is_flag=True, help="Overwrite files that vgen didn't write or that were edited since.")
@transformers_option
@json_option
def build(
    models: Sequence[str],
    everything: bool,
    jobs: int | None,
    out: Path | None,
    granularity: str,
    standalone: bool,
    force: bool,
    transformers: Path | None,
    as_json: bool,
) -> None:
    """Write the package of each MODEL, a model type such as qwen2: all of them, or none.

    With --all each package is written by itself, and what couldn't be is listed at the end with the reason: exit 1 if
    there is any but models without a decoder or an encoder.
    """
    if everything == bool(models):
        raise click.UsageError("Name models, or ask for --all.")
    if jobs is not None and not everything:
        raise click.UsageError("--jobs goes with --all.")
    from .codegen import output, rebuild
    from .codegen.cached import generate
    from .codegen.package import Options
    from .codegen.plan import Granularity
    from .codegen.publish import publish

    source, folder = _source(transformers), out or output.default_folder()
    if everything:
        options = Options(granularity=Granularity(granularity), standalone=standalone)
        sys.exit(_build_all(source, options, folder, force=force, jobs=jobs, as_json=as_json))
    wanted = rebuild.resolve(models, source)
    packages = []
    with _progress(len(wanted)) as step:
        for model in wanted:
            step(model)
            packages.append(generate(model, source, granularity=Granularity(granularity), standalone=standalone))
    reports = publish(output.folders(packages, folder, version=__version__), force=force)
    from .codegen.show import summary

    if as_json:
        click.echo(summary.build_json(packages, reports, folder), nl=False)
    else:
        summary.print_build(packages, reports, folder)


@cli.command(short_help="Show what a build, or another Transformers, would change.")
@click.argument("models", metavar="[MODEL...]", nargs=-1)
@out_option
@transformers_option
@click.option("--from", "old", metavar="RELEASE", help="Compare two Transformers: a folder, a .whl or `installed`.")
@click.option("--to", "new", metavar="RELEASE", help="The other one, `installed` if left out.")
@click.option("--download", is_flag=True, help="Fetch a RELEASE that is a version number with pip.")
@click.option("--no-text", is_flag=True, help="With --from: facts and plan only, no diff of the generated text.")
@click.option("--json", "as_json", is_flag=True, help="With --from: the same for machines.")
def diff(
    models: Sequence[str],
    out: Path | None,
    transformers: Path | None,
    old: str | None,
    new: str | None,
    download: bool,
    no_text: bool,
    as_json: bool,
) -> None:
    """Show what a build would change; exit 1 if anything. No MODEL: every built one.

    With --from it compares what would be built from two releases instead, of every MODEL of Transformers.
    """
    if old is not None:
        if out is not None or transformers is not None:
            raise click.UsageError("--from compares two releases: --out and --transformers have no say in it.")
        sys.exit(_upgrade(models, old, new or "installed", download=download, text=not no_text, as_json=as_json))
    if new is not None or download or no_text or as_json:
        raise click.UsageError("--to, --download, --no-text and --json go with --from.")
    from .codegen.show.console import console
    from .codegen.show.drift import print_diff

    terminal, comparisons = console(), _compare(models, out, transformers)
    for comparison in comparisons:
        print_diff(terminal, comparison.label, comparison.drifts)
    sys.exit(DRIFT if any(comparison.drifts for comparison in comparisons) else SAME)


@cli.command(short_help="Say whether packages are what a build would write.")
@click.argument("models", metavar="[MODEL...]", nargs=-1)
@out_option
@transformers_option
def check(models: Sequence[str], out: Path | None, transformers: Path | None) -> None:
    """Say whether packages are what a build would write: exit 0 same, 1 drift, 2 error."""
    from .codegen.show.console import console
    from .codegen.show.drift import print_check

    terminal, comparisons = console(), _compare(models, out, transformers)
    for comparison in comparisons:
        print_check(terminal, comparison.folder.name, comparison.drifts, comparison.reasons)
    sys.exit(DRIFT if any(comparison.drifts for comparison in comparisons) else SAME)


@cli.command(short_help="Show what was found in a model, and why.")
@click.argument("model")
@granularity_option
@transformers_option
@json_option
def explain(model: str, granularity: str, transformers: Path | None, as_json: bool) -> None:
    """Show what was found in MODEL's source, what is made of it, and why, with file and line."""
    from .codegen.build import generate
    from .codegen.plan import Granularity

    source = _source(transformers)
    package = generate(source.resolve_model(model), source, granularity=Granularity(granularity))
    if as_json:
        from .codegen.show.data import dumps
        from .codegen.show.rows import rows

        found = {"model": package.model, "regions": rows(package), "plan": package.plan, "facts": package.facts}
        click.echo(dumps(found), nl=False)
    else:
        from .codegen.show.console import show
        from .codegen.show.tree import package_tree

        show(package_tree(package))


@cli.command(short_help="Say what in models breaks graphs.")
@click.argument("models", metavar="[MODEL|FILE...]", nargs=-1)
@click.option("--level", type=click.Choice(LEVELS), default="warning", show_default=True, help="The least to show.")
@click.option(
    "--format", "style", type=click.Choice(("text", "json", "sarif", "github")), default="text", show_default=True
)
@granularity_option
@transformers_option
def vet(models: Sequence[str], level: str, style: str, granularity: str, transformers: Path | None) -> None:
    """Say what in models breaks graphs, recompiles or falls back, and what vgen resolves of it.

    A FILE is a modeling file. No MODEL: every built one. Exit 0 if all is resolved, 1 if not, 2 error.
    """
    from .codegen import output
    from .codegen.analyze.model import analyze
    from .codegen.facts import HazardLevel
    from .codegen.plan import Granularity
    from .codegen.vet import at_least, findings, model_of, unresolved

    source = _source(transformers)
    named = models or [package.model for package in output.built(output.default_folder())]
    wanted = tuple(dict.fromkeys(model_of(name, source) for name in named))
    found: list[Finding] = []
    with _progress(len(wanted)) as step:
        for model in wanted:
            step(model)
            found += at_least(findings(analyze(source, model), Granularity(granularity)), HazardLevel(level))
    from .codegen.show import vet as show

    match style:
        case "json":
            click.echo(show.as_json(found, wanted, source.root), nl=False)
        case "sarif":
            click.echo(show.as_sarif(found, source.root), nl=False)
        case "github":
            click.echo(show.as_github(found, source.root), nl=False)
        case _:
            from .codegen.show.console import console

            show.print_text(console(), found, wanted, source.root)
    sys.exit(DRIFT if unresolved(found) else SAME)


@cli.command("list")
@out_option
@transformers_option
@json_option
def list_command(out: Path | None, transformers: Path | None, as_json: bool) -> None:
    """List what is built and what can be."""
    from .codegen import output
    from .codegen.show import listing

    source = _source(transformers)
    packages, models = output.built(out or output.default_folder()), source.models()
    if as_json:
        from .codegen.show.data import dumps

        click.echo(dumps(listing.data(packages, models, source.version)), nl=False)
    else:
        from .codegen.show.console import show

        show(listing.listing(packages, models, source.version))


@cli.command(short_help="Write the table of all models.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default="docs", show_default=True, help="Folder."
)
@click.option("--check", "compare", is_flag=True, help="Write nothing; exit 1 where the files say something else.")
@transformers_option
def report(out: Path, compare: bool, transformers: Path | None) -> None:
    """Build every model in memory and write support.md and support.html, which say what became of each."""
    from .codegen import documents
    from .codegen.catalogue import all_packages
    from .codegen.report import make_report
    from .codegen.show.report import render

    source = _source(transformers)
    with _progress(len(source.models())) as step:
        texts = render(make_report(source, all_packages(source, step=step)))
    names = documents.stale(out, texts) if compare else documents.write(out, texts)
    for name in texts:
        words = ("differs" if compare else "written") if name in names else ("same" if compare else "unchanged")
        click.echo(f"{out / name}: {words}")
    sys.exit(DRIFT if compare and names else SAME)


def _build_all(source: Source, options: Options, out: Path, *, force: bool, jobs: int | None, as_json: bool) -> int:
    """The exit code of `build --all`."""
    from .codegen.show.sweep import Totals, print_sweep, sweep_json
    from .codegen.sweep import is_success, sweep

    models, totals = source.models(), Totals()
    with _estimate(source, models) as step:
        results = totals.watch(sweep(models, source, options, out, force=force, jobs=jobs, step=step))
        text = sweep_json(results, out) if as_json else None
        for _ in results:
            pass  # counted as it passes
    if text is not None:
        click.echo(text, nl=False)
    else:
        print_sweep(totals, out)
    return SAME if is_success(totals.failures) else DRIFT


def _estimate(source: Source, models: Sequence[str]) -> AbstractContextManager[Callable[[str, bool], None]]:
    """A bar with an estimate, where somebody watches: a model takes about as long as its file is large."""
    if not sys.stderr.isatty():
        return nullcontext(lambda model, done: None)
    from .codegen.show.progress import estimated

    return estimated({model: source.size(model) for model in models})


def _upgrade(models: Sequence[str], old: str, new: str, *, download: bool, text: bool, as_json: bool) -> int:
    """The exit code of `diff --from --to`."""
    from .codegen import upgrade
    from .codegen.release import opened
    from .codegen.show import semantic

    with opened(old, download=download) as before, opened(new, download=download) as after:
        wanted = upgrade.resolve(models, before, after)
        with _progress(2 * len(wanted)) as step:
            found = tuple(upgrade.upgrades(wanted, before, after, step=step))
    versions = (before.version, after.version)
    if as_json:
        click.echo(semantic.upgrades_json(found, versions, models=len(wanted), text=text), nl=False)
    else:
        semantic.print_upgrades(found, versions, models=len(wanted), text=text)
    return DRIFT if found else SAME


def _source(transformers: Path | None) -> Source:
    from .codegen import source

    return source.installed() if transformers is None else source.folder(transformers)


def _compare(models: Sequence[str], out: Path | None, transformers: Path | None) -> tuple[Comparison, ...]:
    from .codegen import output, rebuild

    folder = out or output.default_folder()
    return rebuild.compare_all(models, folder, _source(transformers), version=__version__)


def _progress(total: int) -> AbstractContextManager[Callable[[str], None]]:
    """A bar where several models are built and somebody watches."""
    if total < 2 or not sys.stderr.isatty():
        return nullcontext(lambda model: None)
    from .codegen.show.summary import progress

    return progress(total)


def main() -> None:
    """The console script."""
    # A syntax tree is very many objects that live long: the usual hunt for cycles among them takes a third of a build.
    gc.set_threshold(1_000_000)
    cli(prog_name="vgen")


if __name__ == "__main__":
    main()
