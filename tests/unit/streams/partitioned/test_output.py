"""The two outputs of a partition: what the broker refuses, and what it does not acknowledge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from tunemesh.events.v1 import dead_letter_pb2

from services.common.events.undeliverable import Undeliverable
from services.common.platform import telemetry
from services.common.platform.kafka_record import NotAcknowledged, Refusal
from streams.partitioned.output import EndingOutput, RepeatingOutput
from streams.partitioned.records import Outgoing
from tests.unit.streams.partitioned.test_runtime import Words, settle, writing


def a_room() -> Undeliverable:
    return Undeliverable(telemetry.disabled())


@dataclass
class FakeSender:
    """A producer whose broker is down for the first sends, which leave all but the first record."""

    num_failures: int
    sent: list[list[bytes]] = field(default_factory=list)

    async def send(self, records) -> None:
        self.sent.append([record.value for record in records])
        if self.num_failures:
            self.num_failures -= 1
            raise NotAcknowledged("down", records[1:])


async def test_an_output_that_repeats_sends_what_is_left_until_the_broker_has_it(monkeypatch) -> None:
    monkeypatch.setattr("services.common.events.undeliverable._RESEND_S", 0.0)
    sender = FakeSender(num_failures=2)
    words = Words(RepeatingOutput(sender, a_room()))
    for offset, word in enumerate(["a", "b", "c"]):
        await words.take("exposures.v1", offset, word)
    words.runtime.tick(1, (3, 0))
    async with writing(words.runtime):
        await settle()
        assert sender.sent == [[b"a", b"b", b"c"], [b"b", b"c"], [b"c"], [b"(3, 0)"]]
    assert [offset for _, offset in words.acked] == [0, 1, 2]


class Picky:
    """A broker that refuses what is larger than 1,000 bytes, and, once, one record that is not."""

    def __init__(self, *, is_down_at: bytes = b"") -> None:
        self.log: list[Any] = []
        self.is_down_at = is_down_at

    async def send(self, records) -> None:
        refused = [Refusal(each, "MessageSizeTooLargeError()") for each in records if len(each.value) > 1_000 and ".dlq." not in each.topic]
        unknown = [each for each in records if self.is_down_at and each.value == self.is_down_at]
        waiting = {id(each) for each in unknown} | {id(each.record) for each in refused}
        self.log += [each for each in records if id(each) not in waiting]
        self.is_down_at = b""
        if refused or unknown:
            raise NotAcknowledged("not all", unknown, refused=refused)


LARGE = b"large" * 1_000


@pytest.mark.parametrize("output", [EndingOutput, RepeatingOutput])
async def test_what_the_broker_refuses_is_a_dead_letter_and_holds_back_no_offset(output) -> None:
    broker = Picky()
    words = Words(output(broker, a_room()))
    async with writing(words.runtime):
        await words.take("exposures.v1", 0, "a")
        await words.take("exposures.v1", 1, LARGE.decode())
        await words.take("exposures.v1", 2, "b")
        words.runtime.tick(1, (3, 0))
        await words.take("exposures.v1", 3, "c")
        await settle()
    assert [each.value for each in broker.log if each.topic != "samples.v1.dlq.v1"] == [b"a", b"b", b"(3, 0)", b"c"]
    (letter,) = [dead_letter_pb2.DeadLetter.FromString(each.value) for each in broker.log if each.topic == "samples.v1.dlq.v1"]
    assert (letter.source_topic, letter.reason, letter.value) == ("samples.v1", "undeliverable", LARGE)
    assert [offset for _, offset in words.acked] == [0, 1, 2]


async def test_an_output_that_ends_leaves_what_is_not_acknowledged_to_the_next_process() -> None:
    lives = [Picky(is_down_at=b"b"), Picky()]
    for broker in lives:
        words = Words(EndingOutput(broker, a_room()))
        async with writing(words.runtime) as task:
            for offset, word in enumerate(["a", LARGE.decode(), "b", "c"]):
                await words.take("exposures.v1", offset, word)
            words.runtime.tick(1, (4, 0))
            await settle()
            assert task.done() is (broker is lives[0])
        assert [offset for _, offset in words.acked] == ([] if broker is lives[0] else [0, 1, 2, 3])
        if broker is lives[0]:
            with pytest.raises(NotAcknowledged):
                task.result()
    assert [each.value for each in lives[1].log if each.topic == "samples.v1"] == [b"a", b"b", b"c"]
    assert [each.topic for each in lives[1].log if ".dlq." in each.topic] == ["samples.v1.dlq.v1"]


async def test_an_output_that_repeats_keeps_the_partition_of_a_record() -> None:
    given = []

    class Sender:
        async def send(self, records) -> None:
            given.extend(records)

    await RepeatingOutput(Sender(), a_room()).send([Outgoing("t", None, b"v", (("h", b"1"),), 3), Outgoing("t", b"k", None, ())])
    assert [(each.key, each.value, each.headers, each.partition) for each in given] == [
        (None, b"v", [("h", b"1")], 3),
        (b"k", b"", [], None),
    ]
