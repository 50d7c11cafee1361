"""A process that dies at a chosen operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Crash(BaseException):
    """The process dies here."""


@dataclass
class Faults:
    """Dies at the n-th operation that changes something outside the process: before it took effect, or right after.

    The broker takes `broker_takes_ms` to answer whoever reads.
    """

    countdown: int = -1
    after: bool = False
    num_operations: int = 0
    broker_takes_ms: int = 0

    def around(self, operation: Callable[[], Any]) -> Any:
        self.num_operations += 1
        self.countdown -= 1
        if self.countdown == 0 and not self.after:
            raise Crash
        result = operation()
        if self.countdown == 0:
            raise Crash
        return result
