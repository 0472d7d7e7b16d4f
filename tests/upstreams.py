"""Copies of the installed Transformers that tests may edit: links, but for the files that are edited."""

from __future__ import annotations

from pathlib import Path

from vgen.codegen.source import installed


def copy_upstream(folder: Path) -> Path:
    """Make `folder` look like the folder that holds the installed `transformers`: all of it links."""
    folder.mkdir(parents=True)
    (folder / "transformers").symlink_to(installed().root / "transformers")
    return folder


def edit_upstream(folder: Path, file: str, find: str, replace: str) -> None:
    """Replace the one occurrence of `find` in `file`, a path below `folder` such as "transformers/vision_utils.py"."""
    _own(folder, file)
    path = folder / file
    text = path.read_text(encoding="utf-8")
    assert text.count(find) == 1, f"{file} has {text.count(find)} of {find!r}"
    path.write_text(text.replace(find, replace), encoding="utf-8")


def _own(folder: Path, file: str) -> None:
    """Turn the links on the way down to `file` into real folders of links, and `file` into a real file."""
    here = folder
    for part in Path(file).parts:
        here /= part
        if not here.is_symlink():
            continue
        original = here.resolve()
        here.unlink()
        if original.is_file():
            here.write_bytes(original.read_bytes())
            continue
        here.mkdir()
        for path in original.iterdir():
            if path.name != "__pycache__":
                (here / path.name).symlink_to(path)
