"""What a user decides about a model: `[tool.vgen.models.<name>]` in the pyproject.toml of the project that vgen is run in.

[tool.vgen.models.my_model]
decoder = "model.language_model"        # the way from a model class down to it, or a class's name
encoders = { image = "model.visual" }   # the same by what they read: image, audio or text
granularity = "block"                   # whole, block or auto; `--granularity` has the last word
leave-out = ["MyQFormer"]               # classes that aren't compiled
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import VgenError
from .facts import Modality, Span

PROJECT = "pyproject.toml"
KEYS = ("decoder", "encoders", "granularity", "leave-out")
GRANULARITIES = ("whole", "block", "auto")
LOOKS_LIKE = 0.8
"""How like a model's name another one is that is taken for a slip: a model of the user's own may have any name."""
PART = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """For one model. `decoder`, and `encoders` by modality, are dotted attributes from a model class, or a class's name."""

    decoder: str | None = None
    encoders: tuple[tuple[str, str], ...] = ()
    granularity: str | None = None
    leave_out: tuple[str, ...] = ()

    def rows(self) -> dict[str, str]:
        """As strings, for the lock; empty where nothing is decided."""
        rows = {f"encoders.{modality}": part for modality, part in self.encoders}
        if self.decoder is not None:
            rows["decoder"] = self.decoder
        if self.granularity is not None:
            rows["granularity"] = self.granularity
        if self.leave_out:
            rows["leave-out"] = ", ".join(self.leave_out)
        return rows


NONE = Decisions()


def from_rows(rows: Mapping[str, str]) -> Decisions:
    """What `Decisions.rows` gave."""
    return Decisions(
        decoder=rows.get("decoder"),
        encoders=tuple(
            (key.removeprefix("encoders."), rows[key]) for key in sorted(rows) if key.startswith("encoders.")
        ),
        granularity=rows.get("granularity"),
        leave_out=tuple(rows["leave-out"].split(", ")) if "leave-out" in rows else (),
    )


def read_decisions(start: Path, models: Collection[str] = ()) -> dict[str, Decisions]:
    """Model → decisions, from the nearest pyproject.toml in `start` or above it. A name that isn't among `models` is that of a
    model of the user's own, unless it looks like one of theirs.

    Raises:
        VgenError: `settings`, where the file can't be read, or says something that vgen doesn't know.
    """
    path = next((each / PROJECT for each in (start, *start.parents) if (each / PROJECT).is_file()), None)
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise VgenError("settings", f"{path} can't be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).partition(" (at line ")
        line = int(found[0]) if (found := re.match(r"\d+", place)) else 1
        raise VgenError(
            "settings",
            f"this isn't TOML: {reason[:1].lower()}{reason[1:]}.",
            span=Span(file=str(path), line=line),
            hint="Correct the file.",
        ) from error
    tool = data.get("tool")
    settings = tool.get("vgen") if isinstance(tool, dict) else None
    if settings is None:
        return {}
    reader = _Reader(path=path, text=text)
    tables = reader.table(settings, "tool.vgen", ("models",)).get("models", {})
    found_models = {
        name.replace("-", "_"): reader.decisions(name, table)
        for name, table in reader.table(tables, "tool.vgen.models", None).items()
    }
    for name in found_models:
        near = difflib.get_close_matches(name, models, n=1, cutoff=LOOKS_LIKE) if name not in models else []
        if near:
            what = f"`{name}` in [tool.vgen.models] is no model of this Transformers"
            raise reader.wrong(name, what, f"Did you mean {near[0]}? `vgen list` shows all.")
    return found_models


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    path: Path
    text: str

    def wrong(self, key: str, what: str, hint: str) -> VgenError:
        """An error at the first line that has the key, below vgen's own header."""
        lines = self.text.splitlines()
        begin = next((number for number, line in enumerate(lines) if "tool.vgen" in line), 0)
        key_line = re.compile(rf"(.*[.\[\s{{\"']|)?{re.escape(key)}[\s\"'\].=].*")
        at = next((n for n, line in enumerate(lines[begin:], begin) if key_line.match(f"{line} ")), begin)
        return VgenError("settings", f"{what}.", span=Span(file=str(self.path), line=at + 1), hint=hint)

    def table(self, value: object, name: str, keys: tuple[str, ...] | None) -> dict[str, object]:
        last = name.rpartition(".")[2]
        if not isinstance(value, dict):
            raise self.wrong(last, f"{name} isn't a table", "Write it as `[tool.vgen.models.NAME]`.")
        for key in value:
            if keys is not None and key not in keys:
                known = ", ".join(keys)
                raise self.wrong(key, f"[{name}] has an unknown key `{key}`", f"It may have: {known}.")
        return value

    def decisions(self, name: str, value: object) -> Decisions:
        where = f"tool.vgen.models.{name}"
        table = self.table(value, where, KEYS)
        encoders = self.table(table.get("encoders", {}), f"{where}.encoders", tuple(each.value for each in Modality))
        granularity = table.get("granularity")
        if granularity is not None and granularity not in GRANULARITIES:
            raise self.wrong(
                "granularity", f"granularity in [{where}] is {granularity!r}", "It is whole, block or auto."
            )
        leave_out = table.get("leave-out", [])
        if not isinstance(leave_out, list) or not all(
            isinstance(each, str) and each.isidentifier() for each in leave_out
        ):
            raise self.wrong(
                "leave-out", f"leave-out in [{where}] isn't a list of class names", 'For example ["A", "B"].'
            )
        return Decisions(
            decoder=self.part(where, "decoder", table["decoder"]) if "decoder" in table else None,
            encoders=tuple((key, self.part(where, key, encoders[key])) for key in sorted(encoders)),
            granularity=granularity if isinstance(granularity, str) else None,
            leave_out=tuple(sorted(set(leave_out))),
        )

    def part(self, where: str, key: str, value: object) -> str:
        if not isinstance(value, str) or not PART.fullmatch(value):
            raise self.wrong(
                key,
                f"`{key}` in [{where}] is neither a way of attributes nor the name of a class",
                'For example "model.language_model" or "MyTextModel".',
            )
        return value
