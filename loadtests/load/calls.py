"""What became of each call, and the file of one JSON line a call that tests and people read. Knows neither Locust nor gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

OK = "OK"
# Not sent at all: so many calls were under way already that the client gave up on this one. It counts as failed.
NOT_SENT = "NOT_SENT"
# Feedback that was due when no answer was left to report on. It counts neither as failed nor as done.
NOTHING_TO_REPORT = "NOTHING_TO_REPORT"

_MAX_DETAIL = 300


@dataclass(slots=True, kw_only=True)
class Call:
    """One call, retries included. Times are Unix seconds from a clock that never steps.

    Attributes:
        kind: "recommend", "generate", "feedback_kafka" or "feedback_grpc".
        planned_s: when it was due; latency counts from here, whenever it was sent.
        started_s, ended_s: of the first attempt's begin and the last one's end.
        status: OK, a gRPC status code, a Kafka error's name, NOT_SENT or NOTHING_TO_REPORT.
        detail: what the failure said; of a call that was retried in the end with success, what the last failed attempt said.
        attempts: calls on the wire; 0 when it was not sent.
        failed_at_s: end of the first failed attempt; None when none failed.
        degraded: the answer's degraded_reason.
        request_id: of the answer.
        feedback_id: of feedback; acknowledged when status is OK.
        feedback_kind: of feedback: "rating" of a recommended item, "score" of a model's answer.
        first_text_s, last_text_s: of a streamed answer; None before any text.
        tokens: of a streamed answer, as its usage says; the number of its messages when it was cut.
        finish_reason: of a streamed answer that ended well.
    """

    kind: str
    planned_s: float
    started_s: float
    ended_s: float = 0.0
    status: str = OK
    detail: str = ""
    attempts: int = 0
    failed_at_s: float | None = None
    degraded: str = ""
    request_id: str = ""
    feedback_id: str = ""
    feedback_kind: str = ""
    first_text_s: float | None = None
    last_text_s: float | None = None
    tokens: int = 0
    finish_reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether it succeeded, after retries perhaps."""
        return self.status == OK

    @property
    def counts(self) -> bool:
        """False for feedback that had nothing to report on."""
        return self.status != NOTHING_TO_REPORT

    @property
    def latency_ms(self) -> float:
        """From when it was due to its end."""
        return (self.ended_s - self.planned_s) * 1e3

    @property
    def service_ms(self) -> float:
        """From when it was sent to its end."""
        return (self.ended_s - self.started_s) * 1e3

    @property
    def late_ms(self) -> float:
        """How late it was sent."""
        return (self.started_s - self.planned_s) * 1e3


class CallLog:
    """All calls of one run, in memory and, line by line, in a file."""

    def __init__(self, path: Path) -> None:
        """`path` is replaced."""
        self.calls: list[Call] = []
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> CallLog:
        """Open the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, call: Call) -> None:
        """Keep a call that has ended."""
        assert self._file is not None, "the log is not open"
        call.detail = call.detail[:_MAX_DETAIL]
        self.calls.append(call)
        self._file.write(json.dumps(asdict(call)) + "\n")


def read_calls(path: Path) -> Iterator[Call]:
    """Yield the calls of a file, also while it is being written: a last line that is not whole is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield Call(**json.loads(line))
