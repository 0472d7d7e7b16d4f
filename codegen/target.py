"""What the arguments of `build`, `diff`, `check`, `explain` and `vet` name: a model of Transformers, a modeling file, or a checkpoint.

A checkpoint whose config.json has an `auto_map` brings its own code; one that hasn't stands for its model type.
"""

from __future__ import annotations

import dataclasses
import json
import keyword
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import VgenError
from .facts import Span
from .files import COPY, SourceFile
from .local import COPIES, Local, collect
from .lock import Lock
from .output import RUNTIME, folders_of, lock_of
from .source import PACKAGE, Source

CONFIG = "config.json"
CONFIG_CLASS = "AutoConfig"
MODEL_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
"""Of the auto classes that a checkpoint names a model for, these first: the same order in which `vgen.load` asks."""

_NAME = "Name a modeling file, a checkpoint's folder, or a model such as qwen2."


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One package to build: its name, and the source to read it from."""

    model: str
    source: Source

    @property
    def is_local(self) -> bool:
        return self.source.local is not None


def targets(names: Iterable[str], source: Source, *, name: str | None = None) -> tuple[Target, ...]:
    """What each argument names, each once. `name` is the package's, where the only argument is a path.

    Raises:
        VgenError: `unknown-model`; for paths also `missing-file`, `not-python`, `not-a-modeling-file`, `broken-config`,
            `no-model`, `other-repository`, `bad-name`, and what `codegen.local.collect` raises.
    """
    found = {(each.model, each.source.local): each for each in (target(each, source, name=name) for each in names)}
    return tuple(found.values())


def target(argument: str, source: Source, *, name: str | None = None) -> Target:
    """What one argument names; see `targets`."""
    path = Path(argument)
    if is_path(argument):
        if not path.exists():
            raise VgenError("missing-file", f"{argument} doesn't exist.", hint=_NAME)
        found = _checkpoint(path, source, name) if path.is_dir() else _file(path, source, name)
    else:
        try:
            found = Target(model=source.resolve_model(argument), source=source)
        except VgenError:
            built = _built(argument, source)
            if built is None and not path.is_dir():
                raise
            found = built or _checkpoint(path, source, name)
    if name is not None and not found.is_local:
        raise VgenError(
            "bad-name",
            f"The package of Transformers' {found.model} can't have another name: other packages find it by this one.",
        )
    return found


def _built(name: str, source: Source) -> Target | None:
    """What the package of that name was built from, where it is one of the project's and its source is there."""
    for parent in folders_of(None) if name.isidentifier() else ():
        lock = lock_of(parent / name)
        if lock is not None and lock.copied is not None and lock.copied.path is not None:
            found = copied(parent / name, lock, source)
            is_own_copy = found.source.local is None or found.source.local.folder == (parent / name / COPIES).resolve()
            return None if is_own_copy else found
    return None


def is_path(argument: str) -> bool:
    """Whether an argument names a file or folder, rather than a model."""
    return argument.endswith(".py") or "/" in argument or "\\" in argument


def copied(folder: Path, lock: Lock, source: Source) -> Target:
    """A package that was built from a file or checkpoint: from where that lies, or from the package's own copies.

    Raises:
        VgenError: As `target`.
    """
    assert lock.copied is not None
    origin = folder / lock.copied.path if lock.copied.path is not None else None
    if origin is not None and origin.exists():
        shown = Path(os.path.relpath(origin.resolve()))
        found = target(f"{os.curdir}/{shown}", source, name=lock.model)
        if found.source.local is not None:
            return located(found, folder)
    files = tuple(sorted(lock.copies))
    local = Local(
        name=lock.model,
        given=Path(os.path.relpath(folder / COPIES)),
        folder=(folder / COPIES).resolve(),
        main=lock.copied.file,
        files=files,
        origin=lock.copied.path,
    )
    return Target(model=lock.model, source=source.with_local(local))


def located(found: Target, folder: Path) -> Target:
    """The same target, to be built into `folder`: it then knows what its lock says of where it lies.

    Only a path inside of one project is the same on every machine; of any other, nothing is said.
    """
    local = found.source.local
    if local is None:
        return found
    path, project = local.given.resolve(), _project(folder.resolve())
    noted = _noted(folder)
    if noted is not None and (folder / noted).resolve() == path:
        origin: str | None = noted  # Wherever the command is run.
    else:
        origin = Path(os.path.relpath(path, folder.resolve())).as_posix() if path.is_relative_to(project) else None
    return dataclasses.replace(found, source=found.source.with_local(dataclasses.replace(local, origin=origin)))


def _noted(folder: Path) -> str | None:
    """Where the package in a folder was built from, as its lock has it; None where there is none that says so."""
    try:
        lock = lock_of(folder)
    except VgenError:
        return None  # Whoever needs the lock says that it is broken.
    return lock.copied.path if lock is not None and lock.copied is not None else None


def require_free(found: Target, folder: Path) -> None:
    """Raise where the folder holds a package of the same name from another source.

    Raises:
        VgenError: `name-taken`, `broken-lock`.
    """
    lock = lock_of(folder)
    local = found.source.local
    if lock is None:
        return
    if local is None:
        if lock.copied is not None:
            raise VgenError(
                "name-taken",
                f"{folder} holds a package that was built from {lock.copied.path or lock.copied.file}, not from Transformers.",
                hint="Choose another folder with --out, or pass --force to write over it.",
            )
        return
    if lock.copied is None:
        other = f"Transformers' {lock.model}"
    else:
        # The same place, or the same code from another place: a second checkpoint of one model.
        if lock.copied.path == local.origin and (local.origin is not None or lock.copied.file == local.main):
            return
        if all(lock.copies.get(name) == digest for name, digest in _digests(local).items()):
            return
        place = lock.copied.path
        other = Path(os.path.relpath(folder / place)).as_posix() if place is not None else lock.copied.file
    raise VgenError(
        "name-taken",
        f"{folder} holds a package that was built from {other}, not from {local.given}.",
        hint="Give this one another name with --name, or pass --force to write over it.",
    )


def _digests(local: Local) -> Mapping[str, str]:
    return {name: SourceFile(local.folder / name, f"{COPY}/{name}").digest for name in local.files}


def _project(folder: Path) -> Path:
    """The project that a folder belongs to: the nearest folder above that says so, else the working directory."""
    for parent in folder.parents:
        if (parent / "pyproject.toml").is_file() or (parent / ".git").exists():
            return parent
    return Path.cwd()


def _file(path: Path, source: Source, name: str | None) -> Target:
    own = path.resolve()
    if own.is_relative_to(source.root.resolve() / PACKAGE):
        rel = own.relative_to(source.root.resolve()).as_posix()
        match = re.fullmatch(rf"{PACKAGE}/models/(\w+)/modeling_\1\.py", rel)
        if match is None:
            raise VgenError(
                "not-a-modeling-file", f"{path} isn't the modeling file of a model of Transformers.", hint=_NAME
            )
        return Target(model=match[1], source=source)
    if path.suffix != ".py":
        raise VgenError("not-python", f"{path} isn't a Python file.", hint=_NAME)
    package = _package_name(name or path.stem.removeprefix("modeling_"), path.name)
    return _local(package, path, path.parent, [path.name], source)


def _local(name: str, given: Path, folder: Path, roots: list[str], source: Source) -> Target:
    files = collect(folder, roots, given.parent if given.suffix == ".py" else given)
    local = Local(name=name, given=given, folder=folder.resolve(), main=roots[0], files=files)
    return Target(model=name, source=source.with_local(local))


def _package_name(name: str, where: str) -> str:
    wanted = name.replace("-", "_")
    if not wanted.isidentifier() or keyword.iskeyword(wanted) or wanted in (RUNTIME, COPIES):
        raise VgenError(
            "bad-name",
            f"`{name}`, from {where}, can't be the name of a Python package.",
            hint="Give it another with --name.",
        )
    return wanted


def _checkpoint(path: Path, source: Source, name: str | None) -> Target:
    place = path / CONFIG
    if not place.is_file():
        found = sorted(each.name for each in path.glob("modeling_*.py"))
        hint = f"Name the modeling file: {', '.join(found)}." if found else _NAME
        raise VgenError("no-config", f"{path} holds no {CONFIG}, so it is no checkpoint.", hint=hint)
    config = _Config(place)
    references = config.references()
    models = [auto for auto in references if auto != CONFIG_CLASS]
    model_type = config.text("model_type")
    if not models:
        if model_type is None:
            raise config.broken("it names neither a `model_type` nor, in an `auto_map`, a model class")
        try:
            return Target(model=source.resolve_model(model_type), source=source)
        except VgenError as error:
            message = (
                f"Its `auto_map` names no model class, and Transformers {source.version} has no model '{model_type}'."
            )
            raise VgenError("no-model", message, span=config.span(model_type), hint=error.hint) from error
    first = min(
        models, key=lambda auto: (MODEL_CLASSES.index(auto) if auto in MODEL_CLASSES else len(MODEL_CLASSES), auto)
    )
    modules = [references[first], *(references[auto] for auto in sorted(references) if auto != first)]
    for module, class_name in modules:
        file = path / f"{module}.py"
        if not file.is_file():
            raise VgenError(
                "missing-module",
                f"`auto_map` names {module}.{class_name}, but there is no {module}.py in {path}.",
                span=config.span(f"{module}.{class_name}"),
                hint="Download the checkpoint with its Python files.",
            )
    roots = list(dict.fromkeys(f"{module}.py" for module, _ in modules))
    package = _package_name(name or model_type or references[first][0].removeprefix("modeling_"), CONFIG)
    found_target = _local(package, path, path, roots, source)
    for module, class_name in modules:
        file_read = found_target.source.file(f"{COPY}/{module}.py")
        bound = class_name in file_read.definitions or class_name in file_read.imports or file_read.star_imports
        if not bound:
            raise VgenError(
                "no-class",
                f"`auto_map` names {module}.{class_name}, but {module}.py has no class {class_name}.",
                span=config.span(f"{module}.{class_name}"),
                hint="Correct the name, or get the Python files that belong to this config.json.",
            )
    return found_target


class _Config:
    """A checkpoint's config.json, and what of it says which code it needs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.source = path.read_text(encoding="utf-8")
            data: Any = json.loads(self.source)
        except (OSError, UnicodeDecodeError) as error:
            raise self.broken("it can't be read as UTF-8 text") from error
        except json.JSONDecodeError as error:
            reason = f"{error.msg[:1].lower()}{error.msg[1:]} (column {error.colno})"
            raise VgenError(
                "broken-config",
                f"This isn't JSON: {reason}.",
                span=Span(file=path.as_posix(), line=error.lineno),
                hint="Download the file again.",
            ) from error
        if not isinstance(data, dict):
            raise self.broken("it isn't a JSON object")
        self.data: dict[str, Any] = data

    def broken(self, reason: str, text: str = "") -> VgenError:
        return VgenError(
            "broken-config",
            f"This isn't the config.json of a model: {reason}.",
            span=self.span(text),
            hint="Download the file again, or name the modeling file itself.",
        )

    def span(self, text: str) -> Span:
        """The line that holds a text, the first where there is none."""
        lines = getattr(self, "source", "").splitlines()
        line = next((number for number, each in enumerate(lines, 1) if text and f'"{text}"' in each), 1)
        return Span(file=self.path.as_posix(), line=line)

    def text(self, key: str) -> str | None:
        value = self.data.get(key)
        return value if isinstance(value, str) and value else None

    def references(self) -> dict[str, tuple[str, str]]:
        """Auto class → module and class, for the configuration and the models."""
        mapping = self.data.get("auto_map") or {}
        if not isinstance(mapping, dict):
            raise self.broken("`auto_map` isn't an object", "auto_map")
        found = {}
        for auto, reference in mapping.items():
            if auto != CONFIG_CLASS and not auto.startswith("AutoModel"):
                continue
            if not isinstance(reference, str):
                raise self.broken(f"`auto_map` gives {auto} no name of a class", auto)
            repository, separator, _ = reference.partition("--")
            if separator:
                raise VgenError(
                    "other-repository",
                    f"`auto_map` names {reference}: the code of this checkpoint is in another repository, {repository}.",
                    span=self.span(reference),
                    hint="Download that repository, and build from the modeling file in it.",
                )
            module, _, class_name = reference.partition(".")
            if not (module.isidentifier() and class_name.isidentifier()):
                raise self.broken(f"`auto_map` names {reference!r}, which isn't module.Class", reference)
            found[auto] = (module, class_name)
        return found
