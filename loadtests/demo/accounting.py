"""Where each acknowledged feedback id ended: in samples, in a dead-letter topic, or among the orphans.

Reads the topics from their beginning with assigned partitions. Knows nothing of the services that wrote them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from tunemesh.events.v1 import dead_letter_pb2, exposure_pb2, feedback_pb2
from tunemesh.samples.v1 import sample_pb2

from services.common.events.topics import EXPOSURES, FEEDBACK, SAMPLES
from services.common.platform.kafka import assigned_consumer, end_offsets

ORPHAN = "orphan"
_READ_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Accounting:
    """Counts over the acknowledged feedback ids; `missing` must be 0."""

    acknowledged: int
    in_samples: int
    in_dlq: int
    orphans: int
    missing: int
    missing_in_feedback_log: int  # of those missing, how many the broker no longer has although it acknowledged them
    samples: int
    repeated_samples: int  # records that a restarted joiner wrote again; the trainer skips them
    exposures_not_logged: int  # answers whose exposure a killed router had not flushed yet; orphans can be no more than these

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


def account(kafka: str, acknowledged: Iterable[str], request_ids: Iterable[str]) -> Accounting:
    """Read samples.v1, feedback.v1's dead letters and exposures.v1, and place every acknowledged feedback id and every answer."""
    wanted = set(acknowledged)
    unlogged = set(request_ids)
    for value in read_all(kafka, EXPOSURES.name):
        unlogged.discard(exposure_pb2.Exposure.FromString(value).request_id)
    sampled: set[str] = set()
    sample_ids: set[int] = set()
    total = 0
    for value in read_all(kafka, SAMPLES.name):
        record = sample_pb2.SampleRecord.FromString(value)
        for sample in record.group.samples:
            total += 1
            sample_ids.add(sample.sample_id)
            if sample.feedback_id:
                sampled.add(sample.feedback_id)
    dead: dict[str, str] = {}
    for value in read_all(kafka, FEEDBACK.dlq):
        letter = dead_letter_pb2.DeadLetter.FromString(value)
        dead[letter.feedback_id] = letter.reason
    logged = {feedback_pb2.Feedback.FromString(value).feedback_id for value in read_all(kafka, FEEDBACK.name)}
    in_samples = wanted & sampled
    orphans = {i for i in wanted - sampled if dead.get(i) == ORPHAN}
    in_dlq = {i for i in wanted - sampled if i in dead} - orphans
    missing = wanted - in_samples - in_dlq - orphans
    return Accounting(
        acknowledged=len(wanted),
        in_samples=len(in_samples),
        in_dlq=len(in_dlq),
        orphans=len(orphans),
        missing=len(missing),
        missing_in_feedback_log=len(missing - logged),
        samples=len(sample_ids),
        repeated_samples=total - len(sample_ids),
        exposures_not_logged=len(unlogged),
    )


def read_all(kafka: str, topic: str) -> Iterator[bytes]:
    """Yield the values of a topic from its beginning to the end offsets of now.

    Raises:
        Unavailable: no broker, or no such topic.
        TimeoutError: the end was not reached within two minutes.
    """
    deadline = time.monotonic() + _READ_LIMIT_S
    consumer = assigned_consumer(kafka, topic, start="beginning", client_id="demo-accounting")
    try:
        ends = end_offsets(consumer)
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: not read to its end within {_READ_LIMIT_S:.0f} s; is the broker at {kafka} overloaded?")
            for partition, records in consumer.poll(timeout_ms=500).items():
                yield from (record.value for record in records if record.offset < ends[partition])
    finally:
        consumer.close()
