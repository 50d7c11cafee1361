"""What the writer of dead letters does with letters that the broker refuses, and with a topic that holds very many."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events import dead_letter_writer
from services.common.events.dead_letter_writer import DeadLetterWriter, KafkaLetterBox, KnownNames, Name
from services.common.events.dead_letters import dead_letter, dead_letter_headers
from services.common.events.topics import CATALOG
from services.common.events.undeliverable import EXCERPT_BYTES
from services.common.platform.errors import Unavailable
from tests.unit.streams.partitioned.test_runtime import FakeMessage
from tests.waiting import eventually


def letter(offset: int, value: bytes = b"v", **more: Any) -> DeadLetter:
    return dead_letter(topic=CATALOG.name, partition=0, offset=offset, reason="malformed", detail="cause", value=value, **more)


class Kafka:
    """`send_each` of a broker that takes values up to `most` bytes, and is down for some records."""

    def __init__(self, most: int) -> None:
        self.most, self.log = most, list[DeadLetter]()
        self.unacknowledged: set[int] = set()

    def send_each(self, _: str, records: Sequence[Any], **__: Any) -> list[Exception | None]:
        said: list[Exception | None] = []
        for each in records:
            body = DeadLetter.FromString(each.value)
            if len(each.value) > self.most:
                said.append(MessageSizeTooLargeError())
            elif body.source_offset in self.unacknowledged:
                said.append(KafkaTimeoutError())
            else:
                self.log.append(body)
                said.append(None)
        return said


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    kafka = Kafka(2_000)
    monkeypatch.setattr(dead_letter_writer, "send_each", kafka.send_each)
    monkeypatch.setattr(dead_letter_writer, "_RETRY_S", 0.01)
    return kafka


def box() -> KafkaLetterBox:
    return KafkaLetterBox("nowhere", CATALOG, source="/test")


def test_a_refused_letter_is_written_shorter_and_holds_up_no_other(kafka: Kafka) -> None:
    headers = [("big", bytes(3_000))]
    given = [letter(1), letter(2, bytes(5_000)), letter(3, headers=headers), letter(4), letter(5, bytes(5_000), key=bytes(1_500))]
    assert box().put(given) == [True] * 5
    assert [(each.source_offset, each.value, dict(each.headers)) for each in kafka.log] == [
        (1, b"v", {}),
        (4, b"v", {}),
        (2, bytes(EXCERPT_BYTES), {}),
        (3, b"", {}),
        (5, b"", {}),
    ]
    assert "(value cut from 5000 to 1000 bytes)" in kafka.log[2].detail
    for each in kafka.log[2:]:
        assert "MessageSizeTooLarge" in each.detail


def test_what_is_refused_even_so_is_dropped_counted_and_told(kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    post = box()
    assert post.put([letter(1, key=bytes(10_000)), letter(2)]) == [True, True]
    assert [each.source_offset for each in kafka.log] == [2]
    assert post.num_dropped == 1 and "catalog.v1[0]@1 gets no dead letter" in caplog.text


def test_a_letter_that_is_acknowledged_is_not_written_again_with_those_that_are_not(kafka: Kafka, monkeypatch) -> None:
    post = box()
    monkeypatch.setattr(post, "known", list)
    kafka.unacknowledged = {2}
    writer = DeadLetterWriter(CATALOG, post)
    for offset in range(4):
        writer.set_aside(FakeMessage(CATALOG.name, offset, b"x"), "cause")
    eventually(lambda: len(kafka.log) >= 3, every_s=0.01)
    kafka.unacknowledged = set()
    eventually(lambda: len(kafka.log) >= 4, every_s=0.01)
    writer.close()
    assert sorted(each.source_offset for each in kafka.log) == [0, 1, 2, 3]


def test_what_is_known_of_a_topic_is_bounded_at_ten_times_the_bound(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Records of 100 kB: 100 MB of them are read, and 8 bytes of each are kept, up to the bound."""
    monkeypatch.setattr(dead_letter_writer, "_MAX_KNOWN", 1_000)
    one = FakeMessage(CATALOG.dlq, 0, b"")

    def records(_: object) -> Iterator[FakeMessage]:
        for offset in range(10_000):
            body = letter(offset, bytes(100_000))
            one.value, one.headers = body.SerializeToString(), tuple(dead_letter_headers(body, "/test"))
            yield one

    monkeypatch.setattr(dead_letter_writer, "assigned_consumer", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(dead_letter_writer, "records_to_end", records)
    tracemalloc.start()
    known = KnownNames(box().known(), most=1_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(known), known.is_full) == (1_000, True)
    assert peak < 2_000_000
    written = list[DeadLetter]()
    put = SimpleNamespace(known=box().known, put=written.extend)
    writer = DeadLetterWriter(CATALOG, put)  # type: ignore[arg-type]
    writer.set_aside(FakeMessage(CATALOG.name, 200_000, b"x"), "cause")
    eventually(lambda: "1 record(s) get none" in caplog.text, every_s=0.01)
    writer.close()
    assert written == []


def test_names_are_known_in_whatever_order_they_come() -> None:
    names: list[Name] = [(partition, offset * 7 % 101) for partition in (0, 3) for offset in range(101)]
    known = KnownNames(names[:150], most=1_000)
    for name in names[100:]:
        known.add(name)
    assert len(known) == 202
    assert all(name in known for name in names)
    assert (1, 5) not in known and (0, 101) not in known


def test_a_log_that_cannot_be_read_is_read_again(monkeypatch: pytest.MonkeyPatch, kafka: Kafka) -> None:
    post, outages = box(), [Unavailable("no broker"), Unavailable("nothing came")]

    def known() -> Iterable[Name]:
        yield (0, 0)
        if outages:
            raise outages.pop()

    monkeypatch.setattr(post, "known", known)
    writer = DeadLetterWriter(CATALOG, post)
    for offset in range(2):
        writer.set_aside(FakeMessage(CATALOG.name, offset, b"x"), "cause")
    eventually(lambda: kafka.log, every_s=0.01)
    writer.close()
    assert [each.source_offset for each in kafka.log] == [1]
