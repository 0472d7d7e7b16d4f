"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import errno
import gc
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from . import __version__, commands
from .commands import DRIFT, FAILED, INTERRUPTED, SAME

if TYPE_CHECKING:
    from .codegen.vet import Finding

GRANULARITIES = ("whole", "block", "auto")
"""As `codegen.plan.Granularity` has them; spelled out, so that `--help` needn't import it."""

LEVELS = ("error", "warning", "note")
"""As `codegen.facts.HazardLevel` has them."""

DTYPES = ("float32", "bfloat16", "float16")
FOLDER = click.Path(path_type=Path, file_okay=False)

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
    return click.option("--out", type=FOLDER, help="Folder of the packages, if not vgen's own.")(command)


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
@click.argument("models", metavar="MODEL|PATH...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every model of Transformers; one that fails stops no other.")
@click.option("--jobs", type=click.IntRange(min=1), help="With --all: processes; one for each processor, up to 4.")
@out_option
@click.option("--name", help="Name of the package that is built from a PATH.")
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
    name: str | None,
    granularity: str,
    standalone: bool,
    force: bool,
    transformers: Path | None,
    as_json: bool,
) -> None:
    """Write the package of each MODEL, a model type such as qwen2: all of them, or none.

    A PATH is a modeling file, or the folder of a checkpoint that brings its own code. It is read, never run; its package goes
    to ./generated, with a copy of what was read.

    With --all each package is written by itself, and what couldn't be is listed at the end with the reason: exit 1 if
    there is any but models without a decoder or an encoder.
    """
    if everything == bool(models):
        raise click.UsageError("Name models, or ask for --all.")
    if jobs is not None and not everything:
        raise click.UsageError("--jobs goes with --all.")
    if name is not None and len(models) != 1:
        raise click.UsageError("--name goes with one path.")
    from .codegen import output
    from .codegen.cached import generate
    from .codegen.publish import publish
    from .codegen.target import located, require_free, targets

    source = commands.source_of(transformers)
    options = commands.options_of(source, granularity, standalone=standalone)
    if everything:
        folder = out or output.default_folder()
        sys.exit(commands.build_all(source, options, folder, force=force, jobs=jobs, as_json=as_json))
    wanted = targets(models, source, name=name)
    folder = out or output.folder_for([target.is_local for target in wanted])
    packages = []
    with commands.steps(len(wanted)) as step:
        for target in wanted:
            step(target.model)
            found = located(target, folder / target.model)
            if not force:
                require_free(found, folder / target.model)
            packages.append(generate(found.model, found.source, options))
    reports = publish(output.folders(packages, folder, version=__version__), force=force)
    from .codegen.show import summary

    if as_json:
        click.echo(summary.build_json(packages, reports, folder), nl=False)
    else:
        summary.print_build(packages, reports, folder)


@cli.command(short_help="Show what a build, or another Transformers, would change.")
@click.argument("models", metavar="[MODEL|PATH...]", nargs=-1)
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
        sys.exit(
            commands.upgrade(models, old, new or "installed", download=download, text=not no_text, as_json=as_json)
        )
    if new is not None or download or no_text or as_json:
        raise click.UsageError("--to, --download, --no-text and --json go with --from.")
    from .codegen.show.console import console
    from .codegen.show.drift import print_diff

    terminal, comparisons = console(), commands.compare(models, out, transformers)
    for comparison in comparisons:
        print_diff(terminal, comparison.label, comparison.drifts)
    sys.exit(DRIFT if any(comparison.drifts for comparison in comparisons) else SAME)


@cli.command(short_help="Say whether packages are what a build would write.")
@click.argument("models", metavar="[MODEL|PATH...]", nargs=-1)
@out_option
@transformers_option
def check(models: Sequence[str], out: Path | None, transformers: Path | None) -> None:
    """Say whether packages are what a build would write: exit 0 same, 1 drift, 2 error."""
    from .codegen.show.console import console
    from .codegen.show.drift import print_check

    terminal, comparisons = console(), commands.compare(models, out, transformers)
    for comparison in comparisons:
        note = " as its own copy of the source, which isn't where it was" if comparison.is_own_copy else ""
        print_check(terminal, comparison.folder.name, comparison.drifts, comparison.reasons, note)
    sys.exit(DRIFT if any(comparison.drifts for comparison in comparisons) else SAME)


@cli.command(short_help="Show what was found in a model, and why.")
@click.argument("model", metavar="MODEL|PATH")
@granularity_option
@transformers_option
@json_option
def explain(model: str, granularity: str, transformers: Path | None, as_json: bool) -> None:
    """Show what was found in MODEL's source, what is made of it, and why, with file and line."""
    from .codegen.build import generate
    from .codegen.target import target

    source = commands.source_of(transformers)
    found_target = target(model, source)
    package = generate(found_target.model, found_target.source, commands.options_of(source, granularity))
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
@click.argument("models", metavar="[MODEL|PATH...]", nargs=-1)
@click.option("--level", type=click.Choice(LEVELS), default="warning", show_default=True, help="The least to show.")
@click.option(
    "--format", "style", type=click.Choice(("text", "json", "sarif", "github")), default="text", show_default=True
)
@granularity_option
@transformers_option
def vet(models: Sequence[str], level: str, style: str, granularity: str, transformers: Path | None) -> None:
    """Say what in models breaks graphs, recompiles or falls back, and what vgen resolves of it.

    A PATH is a modeling file or a checkpoint's folder. No MODEL: every built one. Exit 0 if all is resolved, 1 if not, 2 error.
    """
    from .codegen import rebuild
    from .codegen.facts import HazardLevel
    from .codegen.target import targets
    from .codegen.vet import at_least, unresolved
    from .codegen.vet import vet as findings_of

    source = commands.source_of(transformers)
    options = commands.options_of(source, granularity)
    looked_at = targets(models, source) if models else [target for target, _ in rebuild.all_built(None, source)]
    wanted = tuple(dict.fromkeys(target.model for target in looked_at))
    found: list[Finding] = []
    with commands.steps(len(looked_at)) as step:
        for target in looked_at:
            step(target.model)
            found += at_least(findings_of(target, options), HazardLevel(level))
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


@cli.command(short_help="Prove packages: they compute what upstream does.")
@click.argument("models", metavar="[MODEL...]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every package of the folder.")
@click.option("--backend", type=click.Choice(("eager", "aot_eager", "inductor")), default="eager", show_default=True)
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option(
    "--sweep",
    type=click.Choice(("short", "whole")),
    default="whole",
    show_default=True,
    help="Every case, or half of the compiles.",
)
@out_option
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; one for each processor, up to 4.")
@click.option("--timeout", type=click.FloatRange(min=1), default=600, show_default=True, help="Seconds for a package.")
@click.option("--fresh", is_flag=True, help="Prove again what is remembered.")
@click.option("--record", type=FOLDER, help="Folder of the file to note it in.")
@json_option
def verify(
    models: Sequence[str],
    everything: bool,
    backend: str,
    device: str,
    dtype: str,
    sweep: str,
    out: Path | None,
    jobs: int | None,
    timeout: float,
    fresh: bool,
    record: Path | None,
    as_json: bool,
) -> None:
    """Run tiny random models of each MODEL's package beside upstream's, over a sweep of inputs and modes.

    Exit 0 if all are proved, 1 where something was found, 2 error. What was proved is remembered, so a run that was
    stopped goes on where it was.
    """
    if everything == bool(models):
        raise click.UsageError("Name models, or ask for --all.")
    from .verify import command

    asked = command.request(
        out,
        models,
        everything=everything,
        backend=backend,
        device=device,
        dtype=dtype,
        sweep=sweep,
        jobs=jobs,
        timeout=timeout,
        fresh=fresh,
    )
    with commands.bar(command.weights(asked)) as step:
        proofs = command.prove(asked, step, record)
    command.show(asked, proofs, as_json=as_json)
    sys.exit(SAME if all(proof.is_proved for proof in proofs) else DRIFT)


def model_options(command: F) -> F:
    """What says which model artifacts are for."""
    for option in (
        click.option("--config", type=click.Path(exists=True), help="A config.json, or the folder of one."),
        click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1."),
        click.option(
            "--variants",
            multiple=True,
            type=click.Choice(("static", "dynamic", "forward")),
            help="`generate` with a cache of that kind, or a plain forward. Several: name it again. Default: what the model can.",
        ),
        click.option(
            "--batch", "batches", multiple=True, type=click.IntRange(min=1), default=(1, 2), show_default=True
        ),
        click.option("--generated", help="Package that holds the generated packages, if not vgen's own."),
        click.option(
            "--tp",
            "processes",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Split the model among so many processes, by its tensor-parallel plan, as `tp_plan` of `from_pretrained` does.",
        ),
    ):
        command = option(command)
    return command


def store_option(command: F) -> F:
    return click.option("--store", type=FOLDER, help="Folder of the artifacts, if not the user's.")(command)


@cli.command("compile", short_help="Compile a model ahead of time.")
@click.argument("model", metavar="MODEL|PATH")
@model_options
@click.option("--into", type=FOLDER, help="Folder to write to, to ship with an image.")
@json_option
def compile_command(model: str, into: Path | None, as_json: bool, **asked: Any) -> None:
    """Compile the regions of MODEL, a model type or the folder of a config.json, and save what comes of it.

    Needs no weights: random ones do. What was saved is loaded in a fresh process and compared with eager. `vgen.load`
    finds it then; other folders than the user's are named by VGEN_STORE. Exit 0 if all is served from artifacts and right,
    1 if not, 2 error.
    """
    from .artifacts import command, show

    step = (lambda words: click.echo(f"{words} …", err=True)) if sys.stderr.isatty() else (lambda words: None)
    done = command.compile_model(command.task(model, folder=into, **asked), step)
    if as_json:
        click.echo(show.compiled_json(done), nl=False)
    else:
        show.print_compiled(done)
    sys.exit(SAME if done.is_fine else DRIFT)


@cli.group()
def artifacts() -> None:
    """Look after compiled artifacts."""


@artifacts.command("list")
@store_option
@json_option
def artifacts_list(store: Path | None, as_json: bool) -> None:
    """List the artifacts of a store."""
    from .artifacts import command, show
    from .runtime.store import default_store

    folder = store or default_store()
    found = tuple(command.entries(folder))
    if as_json:
        click.echo(show.as_json(found), nl=False)
    elif not found:
        click.echo(f"no artifacts in {folder}")
    else:
        show.print_entries(found)


@artifacts.command("verify")
@store_option
@click.option("--manifest", is_flag=True, help="Print a manifest of them, for VGEN_ARTIFACTS_MANIFEST.")
def artifacts_verify(store: Path | None, manifest: bool) -> None:
    """Say of each artifact whether it is whole and may be loaded: exit 0 all, 1 not all."""
    from .artifacts import command, show
    from .runtime import store as stored

    folder = store or stored.default_store()
    found = tuple(command.entries(folder))
    if manifest:
        click.echo(stored.manifest(folder), nl=False)
    else:
        show.print_entries(found)
    sys.exit(DRIFT if any(each.problem for each in found) else SAME)


@artifacts.command("prune")
@store_option
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def artifacts_prune(store: Path | None, dry_run: bool) -> None:
    """Remove artifacts that are broken or of other versions, and what killed writers left."""
    from .artifacts import command, show
    from .runtime.store import default_store

    show.print_pruned(command.prune(store or default_store(), is_dry=dry_run), is_dry=dry_run)


@artifacts.command("why")
@click.argument("model", metavar="MODEL|PATH")
@model_options
@store_option
def artifacts_why(model: str, store: Path | None, **asked: Any) -> None:
    """Say which calls of MODEL no artifact serves, and in what the nearest one differs: exit 0 none, 1 some."""
    from .artifacts import command, show

    cases = command.why(command.task(model, folder=store, **asked))
    for case in cases:
        show.print_case(case)
    sys.exit(DRIFT if any(case.problem for case in cases) else SAME)


@cli.command("list")
@out_option
@transformers_option
@json_option
def list_command(out: Path | None, transformers: Path | None, as_json: bool) -> None:
    """List what is built and what can be."""
    from .codegen import output
    from .codegen.show import listing

    source = commands.source_of(transformers)
    packages = [package for folder in output.folders_of(out) for package in output.built(folder)]
    models = source.models()
    if as_json:
        from .codegen.show.data import dumps

        click.echo(dumps(listing.data(packages, models, source.version)), nl=False)
    else:
        from .codegen.show.console import show

        show(listing.listing(packages, models, source.version))


@cli.command(short_help="Write the table of all models.")
@click.option("--out", type=FOLDER, default="docs", show_default=True, help="Folder.")
@click.option("--check", "compare", is_flag=True, help="Write nothing; exit 1 where the files say something else.")
@transformers_option
def report(out: Path, compare: bool, transformers: Path | None) -> None:
    """Build every model in memory and write support.md and support.html, which say what became of each.

    What `vgen verify --record` noted in the folder's verify/ is in them, as far as it is of these very packages.
    """
    from .codegen import documents
    from .codegen.catalogue import all_packages
    from .codegen.report import make_report
    from .codegen.show.report import render
    from .verify import record

    source = commands.source_of(transformers)
    with commands.steps(len(source.models())) as step:
        found = record.read(record.path_of(out / "verify", source.version))
        texts = render(
            make_report(source, all_packages(source, options=commands.options_of(source), step=step), found)
        )
    names = documents.stale(out, texts) if compare else documents.write(out, texts)
    for name in texts:
        words = ("differs" if compare else "written") if name in names else ("same" if compare else "unchanged")
        click.echo(f"{out / name}: {words}")
    sys.exit(DRIFT if compare and names else SAME)


def main() -> None:
    """The console script."""
    # A syntax tree is very many objects that live long: the usual hunt for cycles among them takes a third of a build.
    gc.set_threshold(1_000_000)
    cli(prog_name="vgen")


if __name__ == "__main__":
    main()
