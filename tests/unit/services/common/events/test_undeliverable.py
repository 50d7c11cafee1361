"""What becomes of a record that Kafka refuses: the letters in its place, and the two ways of sending."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.topics import ALL, QUALITY, SAMPLES
from services.common.events.undeliverable import EXCERPT_BYTES, Undeliverable, in_place_of
from services.common.platform import telemetry
from services.common.platform.errors import Overloaded
from services.common.platform.kafka_record import NotAcknowledged, Record, Refusal
from services.mesh.operate.letter_book import LetterBook

CAUSE = "MessageSizeTooLargeError()"


@pytest.fixture(autouse=True)
def quick_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.events.undeliverable._RESEND_S", 0.0)


def a_record(size: int, *, topic: str = SAMPLES.name, partition: int | None = 3, **more: Any) -> Record:
    headers = [("ce_source", b"/tunemesh/joiner"), ("content-type", b"application/protobuf")]
    return Record(topic, b"ada", random.Random(size).randbytes(size), headers, partition, **more)


def letters_of(record: Record) -> list[DeadLetter]:
    """All that is tried, in turn, while everything is refused."""
    letters, refused = [], record
    while (letter := in_place_of(Refusal(refused, CAUSE))) is not None:
        assert (letter.topic, letter.key, letter.partition) == (f"{record.topic}.dlq.v1", record.key, None)
        assert ("ce_source", b"/tunemesh/joiner") in letter.headers
        letters.append(DeadLetter.FromString(letter.value))
        refused = letter
    return letters


def test_a_letter_says_where_the_record_was_to_go_and_why_it_did_not_and_gets_shorter_until_it_fits() -> None:
    record = a_record(50_000)
    whole, excerpt, bare = letters_of(record)
    for letter in (whole, excerpt, bare):
        assert (letter.source_topic, letter.source_partition, letter.reason) == ("samples.v1", 3, "undeliverable")
        assert letter.key == b"ada" and "50000 bytes" in letter.detail and CAUSE in letter.detail
    assert whole.value == record.value and whole.headers["content-type"] == b"application/protobuf"
    assert excerpt.value == record.value[:EXCERPT_BYTES] and not excerpt.headers
    assert excerpt.ByteSize() < 2 * EXCERPT_BYTES
    assert (bare.value, dict(bare.headers)) == (b"", {})
    assert len({letter.source_offset for letter in (whole, excerpt, bare)}) == 1 and whole.source_offset >= 0


def test_only_a_letter_with_the_whole_record_can_be_put_back() -> None:
    for letter, why_not in zip(letters_of(a_record(50_000)), ["", "its record was cut", "its record was not kept"], strict=True):
        book = LetterBook()
        book.add(0, letter)
        assert [each.why_not for each in book.letters.values()] == [why_not]


def test_a_record_that_no_letter_can_hold_has_an_excerpt_at_once() -> None:
    excerpt, bare = letters_of(a_record(3_000_000, partition=None))
    assert (len(excerpt.value), excerpt.source_partition) == (EXCERPT_BYTES, -1)
    assert "(value cut from 3000000 to 1000 bytes)" in excerpt.detail and "900000" not in excerpt.detail
    assert bare.value == b""


def test_a_small_record_has_no_excerpt_between() -> None:
    assert [len(letter.value) for letter in letters_of(a_record(10))] == [10, 0]


@pytest.mark.parametrize("topic", ALL, ids=lambda topic: topic.name)
def test_every_topic_that_the_mesh_writes_has_dead_letters(topic: Any) -> None:
    assert in_place_of(Refusal(a_record(10, topic=topic.name), CAUSE)) is not None


def test_a_topic_of_nobodys_has_none() -> None:
    assert in_place_of(Refusal(a_record(10, topic="foreign"), CAUSE)) is None


class Broker:
    """Takes what is not larger than `most`, of letters `most_of_letters`; `errors` come first, one a send."""

    def __init__(self, most: int, most_of_letters: int, errors: Sequence[Any] = ()) -> None:
        self.most, self.most_of_letters, self.errors = most, most_of_letters, list(errors)
        self.log: list[Record] = []
        self.num_sends = 0

    def takes(self, record: Record) -> bool:
        return len(record.value) <= (self.most_of_letters if ".dlq." in record.topic else self.most)

    async def send(self, records: Sequence[Record]) -> None:
        self.num_sends += 1
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error(records)
        self.log += [each for each in records if self.takes(each)]
        refused = [Refusal(each, CAUSE) for each in records if not self.takes(each)]
        if refused:
            raise NotAcknowledged("refused", [], refused=refused)

    def send_each(self, records: Sequence[Record]) -> list[Exception | None]:
        self.num_sends += 1
        said: list[Exception | None] = []
        for each in records:
            if self.errors and self.errors[0] == each.value:
                said.append(KafkaTimeoutError())
            else:
                said.append(None if self.takes(each) else MessageSizeTooLargeError())
                self.log += [each] if said[-1] is None else []
        return said

    def sizes(self) -> list[tuple[str, int]]:
        return [(each.topic, len(DeadLetter.FromString(each.value).value if ".dlq." in each.topic else each.value)) for each in self.log]


SIZES = (10, 50_000, 20, 60_000, 30)
TAKEN = [("samples.v1", 10), ("samples.v1", 20), ("samples.v1", 30)]


def send(way: str, broker: Broker, records: Sequence[Record]) -> Undeliverable:
    room = Undeliverable(telemetry.disabled())
    if way == "thread":
        assert room.send_from_thread(broker.send_each, records) == []
    else:
        asyncio.run((room.send_once if way == "once" else room.send_until_acknowledged)(broker, records))
    return room


@pytest.mark.parametrize("way", ["once", "repeated", "thread"])
@pytest.mark.parametrize(
    ("most_of_letters", "letters", "counts"),
    [
        (100_000, [50_000, 60_000], {"set_aside": 2}),
        (20_000, [EXCERPT_BYTES] * 2, {"set_aside": 2, "shortened": 2}),
        (1_000, [0, 0], {"set_aside": 2, "shortened": 4}),
        (10, [], {"set_aside": 2, "shortened": 4, "dropped": 2}),
    ],
)
def test_what_is_refused_is_set_aside_and_the_others_go_on(
    way: str, most_of_letters: int, letters: list[int], counts: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker(1_000, most_of_letters)
    room = send(way, broker, [a_record(size) for size in SIZES])
    assert broker.sizes() == [*TAKEN, *(("samples.v1.dlq.v1", size) for size in letters)]
    assert room.counts == counts
    assert caplog.text.count("refuses a record for samples.v1 (") == 2


def test_sending_once_waits_for_room_and_raises_what_may_pass() -> None:
    full = Broker(1_000, 100_000, [lambda _: Overloaded("full"), lambda _: Overloaded("full")])
    send("once", full, [a_record(10)])
    assert (full.sizes(), full.num_sends) == ([("samples.v1", 10)], 3)
    down = Broker(1_000, 100_000, [lambda records: NotAcknowledged("down", records[1:], refused=[Refusal(records[0], CAUSE)])])
    with pytest.raises(NotAcknowledged):
        send("once", down, [a_record(size) for size in SIZES])
    assert down.num_sends == 1


def test_sending_until_acknowledged_repeats_what_may_pass_and_no_more() -> None:
    records = [a_record(size) for size in SIZES]
    down = Broker(1_000, 100_000, [lambda records: NotAcknowledged("down", records), lambda _: Overloaded("full")])
    send("repeated", down, records)
    assert down.sizes() == [*TAKEN, ("samples.v1.dlq.v1", 50_000), ("samples.v1.dlq.v1", 60_000)]


def test_a_thread_is_told_what_was_not_acknowledged() -> None:
    records = [a_record(size, topic=QUALITY.name) for size in SIZES]
    broker = Broker(1_000, 100_000, [records[2].value])
    lost = Undeliverable(telemetry.disabled()).send_from_thread(broker.send_each, records)
    assert [(record, type(error)) for record, error in lost] == [(records[2], KafkaTimeoutError)]
    assert [size for _, size in broker.sizes()] == [10, 30, 50_000, 60_000]
