"""A process of `vgen verify` that makes way after every package: in a file of its own, which that process imports."""

from __future__ import annotations

from typing import Any

from vgen.verify import worker


def leaving(*arguments: Any) -> None:
    worker.RECYCLE = 0
    worker.work(*arguments)
