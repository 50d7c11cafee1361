"""Made-up traffic for the stream tests: exposures with real feature blocks, feedback, and reading back what came of them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from kafka import KafkaProducer
from tunemesh.events.v1 import dead_letter_pb2, exposure_pb2, feedback_pb2
from tunemesh.samples.v1 import sample_pb2

from services.common.events import envelope
from services.common.platform.ids import uuid7
from services.common.platform.kafka import assigned_consumer
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from tests import limits

REPOSITORY_ROOT = Path(__file__).parents[3]
SPEC_PATH = REPOSITORY_ROOT / "model_repo" / "ranker" / "feature_spec.yaml"
SPEC = FeatureSpec.load(SPEC_PATH)
PARTITIONS = 2

# A dead member of a group keeps its partitions for so long, and a first member waits for company for half of it.
SESSION_TIMEOUT_MS = str(round(1_000 * limits.seconds(3)))


class Process:
    """A stream as a process of its own; logs go to a file."""

    def __init__(self, module: str, log: Path, env: dict[str, str]) -> None:
        self.log = log
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        path = f"{REPOSITORY_ROOT}:{REPOSITORY_ROOT / 'protos' / 'gen'}"
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=REPOSITORY_ROOT,
                env={**inherited, "PYTHONPATH": path, "TMPDIR": str(log.parent), **env},
                stdout=file,
                stderr=file,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_said(self, text: str, *, count: int = 1) -> bool:
        return self.log.read_text().count(text) >= count

    def wait_for(self, text: str, *, count: int = 1, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + limits.seconds(timeout_s)
        while not self.has_said(text, count=count):
            assert self._process.poll() is None, f"ended with {self._process.returncode}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"no {text!r} within {timeout_s:.0f} s:\n{self.log.read_text()}"
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for its end; returns the exit code."""
        return self._process.wait(timeout=limits.seconds(timeout_s))


@dataclass
class Traffic:
    """Sends exposures and feedback, and remembers what the broker acknowledged."""

    bootstrap: str
    seed: int = 0
    exposures: list[exposure_pb2.Exposure] = field(default_factory=list)
    feedback: list[feedback_pb2.Feedback] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.producer = KafkaProducer(
            bootstrap_servers=self.bootstrap, acks="all", enable_idempotence=True, linger_ms=5, allow_auto_create_topics=False
        )

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        self.producer.close(timeout=limits.seconds(5))

    def block(self, num_items: int) -> bytes:
        features = Features(
            user_key=1,
            history_keys_L=np.arange(3, dtype=np.int64),
            history_values_L=np.zeros(3, np.float16),
            user_U=np.zeros(len(SPEC.user_columns), np.float16),
            items_NF=np.arange(num_items * len(SPEC.item_columns), dtype=np.float32).reshape(num_items, -1).astype(np.float16),
        )
        return exposure_block.encode(features, SPEC.schema_hash)

    def expose(self, *, num_items: int = 20, send: bool = True, **changes) -> exposure_pb2.Exposure:
        now_ms = time.time_ns() // 1_000_000
        exposure = exposure_pb2.Exposure(
            request_id=uuid7(),
            user_id=f"u{self.random.randrange(50)}",
            exposed_at_ms=now_ms,
            item_ids=[str(item) for item in self.random.sample(range(200), num_items)],
            features_block=self.block(num_items),
            schema_hash=SPEC.schema_hash,
            model_version="1.7",
            variant="default",
        )
        for name, value in changes.items():
            setattr(exposure, name, value)
        if send:
            self.send("exposures.v1", exposure.user_id, exposure.SerializeToString())
            self.exposures.append(exposure)
        return exposure

    def answer(self, exposure: exposure_pb2.Exposure, *, item_id: str | None = None, headers=None, **changes) -> feedback_pb2.Feedback:
        feedback = feedback_pb2.Feedback(
            feedback_id=f"f-{uuid7()}",
            request_id=exposure.request_id,
            user_id=exposure.user_id,
            item_id=item_id or self.random.choice(list(exposure.item_ids)),
            kind="rating",
            value=float(self.random.randrange(1, 6)),
            accepted_at_ms=time.time_ns() // 1_000_000,
        )
        for name, value in changes.items():
            setattr(feedback, name, value)
        self.send("feedback.v1", feedback.user_id, feedback.SerializeToString(), headers=headers)
        self.feedback.append(feedback)
        return feedback

    def demonstrate(self, user_id: str) -> None:
        """Feedback about an answer of the language model: no business of the ranking half."""
        feedback = feedback_pb2.Feedback(
            feedback_id=f"f-{uuid7()}",
            request_id=uuid7(),
            user_id=user_id,
            kind="demonstration",
            text="In 1995.",
            accepted_at_ms=time.time_ns() // 1_000_000,
        )
        self.send("feedback.v1", user_id, feedback.SerializeToString())

    def send(self, topic: str, key: str, value: bytes, *, headers=None, partition: int | None = None) -> None:
        headers = envelope.headers_for("test", "/test") if headers is None else headers
        self.producer.send(topic, value, key.encode(), headers=headers, partition=partition)

    def run(
        self, seconds: float, *, per_second: int, tick: Callable[[float], None] = lambda _: None, until: Callable[[], bool] = lambda: False
    ) -> None:
        """Steady traffic for so long at most; half of the requests get one or two answers, at once or a little later."""
        started = time.monotonic()
        later: list[tuple[float, exposure_pb2.Exposure]] = []
        while (elapsed := time.monotonic() - started) < seconds and not until():
            while len(self.exposures) < elapsed * per_second:
                exposure = self.expose()
                for _ in range(self.random.choice([0, 0, 1, 2])):
                    later.append((elapsed + self.random.choice([0.0, 0.2, 1.5, 4.0]), exposure))
            for due in [entry for entry in later if entry[0] <= elapsed]:
                later.remove(due)
                if (
                    time.monotonic() - started - due[0] < 1.0
                ):  # else this process stood still, and the answer might be too late for the joiner by now
                    self.answer(due[1])
            tick(elapsed)
            time.sleep(0.005)
        for due_s, exposure in later:
            if time.monotonic() - started - due_s < 1.0:
                self.answer(exposure)
        self.producer.flush()


@dataclass
class Outcome:
    """What stands in samples.v1 and the dead-letter topics."""

    groups: list[sample_pb2.SampleGroup] = field(default_factory=list)
    ticks: dict[int, list[sample_pb2.Tick]] = field(default_factory=dict)
    dead_letters: list[dead_letter_pb2.DeadLetter] = field(default_factory=list)
    traceparents: list[str] = field(default_factory=list)

    @property
    def samples(self) -> dict[int, sample_pb2.Sample]:
        """First of each id, as the trainer takes them."""
        first: dict[int, sample_pb2.Sample] = {}
        for group in self.groups:
            for sample in group.samples:
                first.setdefault(sample.sample_id, sample)
        return first

    @property
    def joined(self) -> set[str]:
        return {sample.feedback_id for sample in self.samples.values() if sample.feedback_id}

    @property
    def reasons(self) -> Counter[str]:
        return Counter(letter.reason for letter in self.dead_letters)


def read_outcome(bootstrap: str, until: Callable[[Outcome], bool], *, timeout_s: float = 60.0) -> Outcome:
    """Read samples.v1 and the dead-letter topics until the condition holds (then for another moment, to catch what is too much)."""
    topics = ("samples.v1", "exposures.v1.dlq.v1", "feedback.v1.dlq.v1")
    consumers = {topic: assigned_consumer(bootstrap, topic, start="beginning", client_id="test") for topic in topics}
    outcome, deadline, extra = Outcome(), time.monotonic() + limits.seconds(timeout_s), 0
    try:
        while extra < 5:
            for topic, consumer in consumers.items():
                for batch in consumer.poll(timeout_ms=100).values():
                    for record in batch:
                        _take(outcome, topic, record)
            if until(outcome):
                extra += 1
            assert time.monotonic() < deadline, f"not reached: {len(outcome.groups)} groups, {outcome.reasons}"
    finally:
        for consumer in consumers.values():
            consumer.close()
    return outcome


def _take(outcome: Outcome, topic: str, record) -> None:
    if topic != "samples.v1":
        outcome.dead_letters.append(dead_letter_pb2.DeadLetter.FromString(record.value))
        return
    message = sample_pb2.SampleRecord.FromString(record.value)
    if message.WhichOneof("record") == "tick":
        outcome.ticks.setdefault(record.partition, []).append(message.tick)
    else:
        outcome.groups.append(message.group)
        outcome.traceparents.append(envelope.header(record.headers, "traceparent") or "")
