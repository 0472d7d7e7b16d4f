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
    from .codegen.rebuild import Comparison
    from .codegen.source import Source

GRANULARITIES = ("whole", "block", "auto")
"""As `codegen.plan.Granularity` has them; spelled out, so that `--help` needn't import it."""

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
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@out_option
@granularity_option
@click.option("--standalone", is_flag=True, help="Put the runtime beside the packages: they then import no vgen.")
@click.option("--force", is_flag=True, help="Overwrite files that vgen didn't write or that were edited since.")
@transformers_option
@json_option
def build(
    models: Sequence[str],
    out: Path | None,
    granularity: str,
    standalone: bool,
    force: bool,
    transformers: Path | None,
    as_json: bool,
) -> None:
    """Write the package of each MODEL, a model type such as qwen2: all of them, or none."""
    from .codegen import output, rebuild
    from .codegen.build import generate
    from .codegen.plan import Granularity
    from .codegen.publish import publish

    source, folder = _source(transformers), out or output.default_folder()
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


@cli.command(short_help="Show what a build would change.")
@click.argument("models", metavar="[MODEL...]", nargs=-1)
@out_option
@transformers_option
def diff(models: Sequence[str], out: Path | None, transformers: Path | None) -> None:
    """Show what a build would change; exit 1 if anything. No MODEL: every built one."""
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
