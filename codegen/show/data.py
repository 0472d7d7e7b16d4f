"""The same for machines: JSON of rows, facts and plan, sorted and without surprises."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def jsonable(value: object) -> Json:
    """Frozen dataclasses → objects, enums → their values, tuples → lists, paths → text.

    Raises:
        TypeError: for a type that facts and plans don't hold.
    """
    match value:
        case Enum():
            return jsonable(value.value)
        case None | bool() | int() | float() | str():
            return value
        case Path():
            return str(value)
        case Mapping():
            return {str(key): jsonable(value[key]) for key in sorted(value)}
        case tuple() | list():
            return [jsonable(item) for item in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            raise TypeError(f"{type(value).__name__} has no JSON form")


def dumps(value: object) -> str:
    """JSON text that ends in a newline."""
    return json.dumps(jsonable(value), indent=2, ensure_ascii=False) + "\n"
