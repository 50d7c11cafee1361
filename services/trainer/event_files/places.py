"""Where a cell stands, and the one error of everything that reads event files."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.platform.errors import ConfigurationError

_MAX_SHOWN = 60


class EventFileError(ConfigurationError):
    """A file of events that cannot be read, or holds what cannot be learned. Retrying does not help."""


@dataclass(frozen=True, slots=True)
class Place:
    """A column of a file, or of a batch of its rows. Rows are counted from 1; a header is no row."""

    file: object
    """Its text is what errors name."""
    column: str
    first_row: int = 0
    """How many rows of the file stand before the batch."""

    def fault(self, row: int, value: object, what: str) -> EventFileError:
        """Return the error about the cell in row index `row` (from 0) of the batch: `what` says what is wrong with it, and what to do."""
        return EventFileError(f"{self.file}: column {self.column!r}, row {self.first_row + row + 1}: {_shown(value)} {what}")

    def refusal(self, what: str) -> EventFileError:
        """Return the error about the column as a whole."""
        return EventFileError(f"{self.file}: column {self.column!r}: {what}")


def _shown(value: object) -> str:
    text = "an empty cell" if value in ("", None) else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
