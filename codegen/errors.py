"""The one error that vgen raises for bad input: what is wrong, where, and what to do."""

from __future__ import annotations

from .facts import Span


class VgenError(Exception):
    """Bad input or a source that cannot be read. `code` is stable, `hint` says what to do next."""

    def __init__(self, code: str, message: str, *, span: Span | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.span = span
        self.hint = hint

    def __str__(self) -> str:
        """One paragraph: place, what is wrong, what to do."""
        place = f"{self.span.file}:{self.span.line}: " if self.span else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{place}{self.message}{hint}"
