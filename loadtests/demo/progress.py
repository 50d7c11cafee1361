"""The demo's live view: one table that is redrawn on a terminal, one line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

_LINE_EVERY_S = 10.0


@dataclass(slots=True)
class Snapshot:
    """What is shown; text that is already formatted, by label, in order."""

    values: dict[str, str] = field(default_factory=dict)


class Progress:
    """Context manager that shows snapshots."""

    def __init__(self, title: str) -> None:
        """`title` heads the table."""
        self._title = title
        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=2, transient=True) if sys.stdout.isatty() else None
        self._last_line = 0.0

    def __enter__(self) -> Progress:
        """Start drawing."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop drawing and leave the terminal as it was."""
        if self._live:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Redraw, or print a line when it is time for one."""
        if self._live:
            table = Table(title=self._title, show_header=False)
            for label, text in snapshot.values.items():
                table.add_row(label, text)
            self._live.update(table)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._console.print("  ".join(f"{label}: {text}" for label, text in snapshot.values.items()), soft_wrap=True, highlight=False)
