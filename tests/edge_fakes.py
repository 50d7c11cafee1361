"""Fakes of what the router and the feedback collector talk to, and a way to run a service as a real process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.common.platform.kafka_record import NotAcknowledged, Record
from services.feedback_collector.core import Feedback
from services.router.core import Exposure, Query, Ranking
from tests.limits import seconds

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class FakeItem:
    item_id: str
    score: float = 0.5
    task_scores: tuple[float, ...] = (0.5,)
    reasons: tuple[str, ...] = ("candidate",)


def ranking_of(query: Query, degraded_reason: str = "") -> Ranking:
    items = [FakeItem(item_id) for item_id in (query.candidates or ("recalled-1", "recalled-2"))[: query.limit]]
    return Ranking(
        items=items, task_names=["interact"], model_version="1.7", degraded_reason=degraded_reason, features_block=b"block", schema_hash="h"
    )


@dataclass
class FakeRecommender:
    """Answers at once, or raises the next of `failures`."""

    failures: list[Exception] = field(default_factory=list)
    calls: list[tuple[Query, float, bool]] = field(default_factory=list)

    async def recommend(self, query: Query, *, timeout_s: float, wait_for_ready: bool) -> Ranking:
        self.calls.append((query, timeout_s, wait_for_ready))
        if self.failures:
            raise self.failures.pop(0)
        return ranking_of(query)


@dataclass
class FakeExposureLog:
    exposures: list[Exposure] = field(default_factory=list)

    def append(self, exposure: Exposure) -> None:
        self.exposures.append(exposure)


@dataclass
class FakeEventLog:
    records: list[Record] = field(default_factory=list)

    def append(self, record: Record) -> None:
        self.records.append(record)


@dataclass
class FakeSender:
    """Kafka that is down while `is_down` is set."""

    is_down: bool = False
    sent: list[Record] = field(default_factory=list)

    async def send(self, records: Sequence[Record]) -> None:
        if self.is_down:
            raise NotAcknowledged("down", records)
        self.sent.extend(records)


@dataclass
class FakeFeedbackLog:
    failures: list[Exception] = field(default_factory=list)
    written: list[Feedback] = field(default_factory=list)

    async def write(self, feedback: Sequence[Feedback], *, timeout_s: float | None) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.written.extend(feedback)


class ServiceProcess:
    """`python -m MODULE` with these variables; `port` is known once it is READY."""

    def __init__(self, module: str, env: dict[str, str], *, cwd: Path = REPOSITORY) -> None:
        paths = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'protos' / 'gen'}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TUNEMESH_", "KAFKA_", "OTEL_"))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], env={**clean, "PYTHONPATH": paths, **env}, cwd=cwd, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self.port = 0
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))
            match = re.search(r"READY \S+ \S+:(\d+)$", line.rstrip("\n"))
            if match:
                self.port = int(match[1])
                self._ready.set()
        self._ready.set()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_ready(self, timeout_s: float = 120.0) -> int:
        assert self._ready.wait(seconds(timeout_s)) and self.port, f"not READY:\n{self.log}"
        return self.port

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def wait(self, timeout_s: float = 120.0) -> int:
        code = self._process.wait(seconds(timeout_s))
        self._reader.join(seconds(timeout_s))
        return code

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
        if self._process.stderr is not None:
            self._process.stderr.close()
