"""Names what the demo is doing, and keeps how long each part took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Phases:
    """Names what goes on and how long each part took."""

    def __init__(self, console: Console) -> None:
        """Prints to `console`."""
        self._console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, what: str) -> Iterator[None]:
        """Time one phase."""
        self._console.print(f"[bold]{name}[/bold] {what}", highlight=False)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)
        self._console.print(f"  done in {self.seconds[name]:.1f} s", highlight=False)
