"""The runtime of a partition, with a stream of words: each record is emitted as it is, and a tick cuts behind all that was read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from tunemesh.events.v1 import dead_letter_pb2

from services.common.events.envelope import MalformedRecord
from services.common.events.topics import EXPOSURES, FEEDBACK
from streams.partitioned.output import Output
from streams.partitioned.reading_order import ReadingOrder
from streams.partitioned.records import DeadLetter, Forward, Outgoing, Record
from streams.partitioned.runtime import Input, Partition, PartitionRuntime
from streams.strikes import Strikes
from tests.limits import seconds
from tests.unit.streams.partitioned.test_intake import an_intake


@dataclass
class FakeMessage:
    """A message of Faust's."""

    topic: str
    offset: int
    value: bytes | None
    key: bytes | None = b"u1"
    headers: tuple | None = ()
    partition: int = 0


@dataclass
class FakeOutput:
    """An output that has records acknowledged when told to, or at once."""

    acknowledges: bool = True
    sent: list[Outgoing] = field(default_factory=list)
    futures: list[asyncio.Future] = field(default_factory=list)

    async def send(self, records: Sequence[Outgoing]) -> None:
        futures = [asyncio.get_running_loop().create_future() for _ in records]
        self.sent += records
        self.futures += futures
        if not self.acknowledges:
            await asyncio.gather(*futures)


@contextlib.asynccontextmanager
async def writing(runtime: PartitionRuntime):
    task = asyncio.create_task(runtime.write())
    yield task
    task.cancel()
    await asyncio.wait({task})


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def read_word(record: Record, _now_ms: int) -> str:
    word = (record.value or b"").decode()
    if word == "bad":
        raise MalformedRecord("a bad word")
    if word == "deadly":
        raise ZeroDivisionError("nobody thought of that")
    return word


def written(word: str) -> Outgoing:
    if word == "unwritable":
        raise KeyError(word)
    return Outgoing("samples.v1", b"key", word.encode(), ())


class Words:
    def __init__(self, output: Output, *, max_outbox: int = 100, strikes: Strikes | None = None) -> None:
        self.intake = an_intake()
        self.acked: list[tuple[str, int]] = []
        partition: Partition[str, tuple[int, int]] = Partition(
            intake=self.intake,
            subjects=Input(EXPOSURES, read_word, self._take_subject),
            feedback=Input(FEEDBACK, read_word, self._take_feedback),
            tick=lambda now_ms, ends: (["ticking"] if ends[0] is None else [], self._read_so_far()),
            committable=lambda cut: cut,
            outgoing=written,
            mark=lambda cut: Outgoing("cuts", None, repr(cut).encode(), (), 0),
            wants_tick=lambda now_ms: now_ms >= 7,
        )
        self.runtime = PartitionRuntime(
            partition,
            output,
            ReadingOrder(),
            lambda message: self.acked.append((message.topic, message.offset)),
            strikes or Strikes(None),
            source="/test",
            max_outbox=max_outbox,
        )

    def _take_subject(self, word: str, record: Record):
        self.intake.subjects.advance(record.offset)
        return [word]

    def _take_feedback(self, word: str, record: Record):
        self.intake.feedback.advance(record.offset)
        return [Forward(record, 1)] if word == "elsewhere" else [word]

    def _read_so_far(self) -> tuple[int, int]:
        return self.intake.subjects.next_offset, self.intake.feedback.next_offset

    async def take(self, topic: str, offset: int, word: str) -> FakeMessage:
        message = FakeMessage(topic, offset, word.encode())
        await self.runtime.take(message)
        return message


def values(records: list[Outgoing]) -> list[bytes | None]:
    return [record.value for record in records]


async def test_what_is_done_is_acknowledged_in_order_behind_its_cut() -> None:
    output = FakeOutput()
    words = Words(output)
    async with writing(words.runtime):
        await words.take("exposures.v1", 0, "a")
        await words.take("feedback.v1", 0, "b")
        await settle()
        assert values(output.sent) == [b"a", b"b"] and words.acked == []
        words.runtime.tick(1, (1, 1))
        await words.take("exposures.v1", 1, "c")
        await settle()
    assert values(output.sent) == [b"a", b"b", b"(1, 1)", b"c"]
    assert words.acked == [("exposures.v1", 0), ("feedback.v1", 0)]


async def test_a_cut_waits_for_the_acknowledgement_of_everything_before_it() -> None:
    output = FakeOutput(acknowledges=False)
    words = Words(output)
    async with writing(words.runtime):
        await words.take("exposures.v1", 0, "a")
        await words.take("feedback.v1", 0, "b")
        words.runtime.tick(1, (1, 1))
        await settle()
        assert values(output.sent) == [b"a", b"b"]
        for future in output.futures:
            future.set_result(None)
        await settle()
        assert values(output.sent) == [b"a", b"b", b"(1, 1)"]
        assert words.acked == []  # the mark of the cut is not acknowledged yet
        output.futures[-1].set_result(None)
        await settle()
    assert words.acked == [("exposures.v1", 0), ("feedback.v1", 0)]


async def test_what_a_tick_emits_is_written_before_its_cut() -> None:
    output = FakeOutput()
    words = Words(output)
    async with writing(words.runtime):
        words.runtime.tick(1, (None, None))
        await settle()
    assert values(output.sent) == [b"ticking", b"(0, 0)"]


async def test_a_tick_is_left_out_while_the_last_cut_waits() -> None:
    output = FakeOutput(acknowledges=False)
    words = Words(output)
    async with writing(words.runtime):
        for _ in range(3):
            words.runtime.tick(1, (0, 0))
        await settle()
        output.futures[0].set_result(None)
        await settle()
        assert values(output.sent) == [b"(0, 0)"]
        words.runtime.tick(2, (0, 0))
        await settle()
    assert values(output.sent) == [b"(0, 0)", b"(0, 0)"]


async def test_a_partition_says_what_a_tick_would_bring_and_whether_it_may_come() -> None:
    output = FakeOutput(acknowledges=False)
    words = Words(output)
    runtime = words.runtime
    async with writing(runtime):
        await words.take("exposures.v1", 0, "a")
        await words.take("feedback.v1", 0, "b")
        assert (runtime.num_since_tick, runtime.may_tick) == (2, True)
        assert [runtime.wants_tick(now_ms) for now_ms in (6, 7)] == [False, True]
        runtime.tick(1, (1, 1))
        await words.take("exposures.v1", 1, "c")
        assert (runtime.num_since_tick, runtime.may_tick) == (1, False)
        for _ in range(2):
            await settle()
            for future in output.futures:
                if not future.done():
                    future.set_result(None)
        await settle()
        assert runtime.may_tick
    runtime.close()
    assert not runtime.wants_tick(7)


async def test_a_send_that_fails_ends_the_writing_and_acknowledges_nothing() -> None:
    output = FakeOutput(acknowledges=False)
    words = Words(output)
    async with writing(words.runtime) as task:
        await words.take("exposures.v1", 0, "a")
        await words.take("feedback.v1", 0, "b")
        words.runtime.tick(1, (1, 1))
        await settle()
        output.futures[0].set_exception(ConnectionError("gone"))
        output.futures[1].set_result(None)
        await asyncio.wait({task})
        with pytest.raises(ConnectionError):
            task.result()
    assert words.acked == []


async def test_bad_and_misplaced_records_go_where_they_belong() -> None:
    output = FakeOutput()
    words = Words(output)
    async with writing(words.runtime):
        await words.runtime.take(
            FakeMessage("exposures.v1", 0, b"bad", headers=(("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),))
        )
        await words.runtime.take(FakeMessage("feedback.v1", 0, b"elsewhere", key=None, headers=None))
        words.runtime.tick(1, (1, 1))
        await settle()
    letter_record, forwarded, _ = output.sent
    assert (letter_record.topic, letter_record.key, dict(letter_record.headers)["traceparent"]) == (
        "exposures.v1.dlq.v1",
        b"u1",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    letter = dead_letter_pb2.DeadLetter.FromString(letter_record.value or b"")
    assert (letter.reason, letter.detail, letter.value, letter.source_offset) == ("malformed", "a bad word", b"bad", 0)
    assert forwarded == Outgoing("feedback.v1", None, b"elsewhere", (), 1)
    assert words.acked == [("exposures.v1", 0), ("feedback.v1", 0)]


async def test_a_dead_letter_without_content_has_no_value() -> None:
    output = FakeOutput()
    words = Words(output)
    letter = DeadLetter(Record("feedback.v1", 0, 7, b"u1", b"jane@example.com", ()), "pii", "it holds email", "f1", without_content=True)
    words.runtime._put([letter])
    async with writing(words.runtime):
        await settle()
    [record] = output.sent
    assert b"jane" not in (record.value or b"")
    assert dead_letter_pb2.DeadLetter.FromString(record.value or b"").feedback_id == "f1"


async def test_a_full_outbox_stops_the_reading_until_something_is_written() -> None:
    output = FakeOutput()
    words = Words(output, max_outbox=2)
    for offset in range(2):
        await words.take("exposures.v1", offset, "a")
    third = asyncio.create_task(words.take("exposures.v1", 2, "b"))
    await settle()
    assert not third.done()
    async with writing(words.runtime):
        await asyncio.wait_for(third, seconds(20))
        await settle()
    assert values(output.sent) == [b"a", b"a", b"b"]


async def test_messages_are_kept_without_their_content_until_they_are_acknowledged() -> None:
    words = Words(FakeOutput())
    message = await words.take("exposures.v1", 0, "a")
    assert (message.value, message.headers) == (None, None)


async def test_a_closed_partition_takes_nothing_more() -> None:
    words = Words(FakeOutput())
    words.runtime.close()
    await words.take("exposures.v1", 0, "a")
    await words.take("feedback.v1", 0, "a")
    assert words._read_so_far() == (0, 0)


async def test_a_partition_that_is_closed_while_a_record_waits_for_room_lets_go_of_it() -> None:
    words = Words(FakeOutput(), max_outbox=0)
    waiting = asyncio.create_task(words.take("exposures.v1", 0, "a"))
    await settle()
    assert not waiting.done()
    words.runtime.close()
    await asyncio.wait_for(waiting, seconds(20))
    assert words._read_so_far() == (0, 0)


async def test_counts_are_told_once() -> None:
    words = Words(FakeOutput())
    words.intake.counts["exposures"] += 1
    assert words.runtime.new_counts() == {"exposures": 1}
    assert words.runtime.new_counts() == {}


@pytest.mark.parametrize(
    ("topic", "word", "error"),
    [
        ("exposures.v1", "deadly", "ZeroDivisionError: nobody thought of that"),
        ("feedback.v1", "deadly", "ZeroDivisionError: nobody thought of that"),
        ("exposures.v1", "unwritable", "KeyError: 'unwritable'"),
    ],
)
async def test_a_record_that_kills_two_workers_is_set_aside_by_the_third(tmp_path, topic: str, word: str, error: str) -> None:
    for _ in range(2):
        strikes = Strikes(tmp_path / "worker")
        words = Words(FakeOutput(), strikes=strikes)
        await words.take(topic, 0, "fine")
        with pytest.raises((ZeroDivisionError, KeyError)):
            await words.take(topic, 1, word)
        # Until the process has ended nothing goes on behind the record: a tick would say that it is done.
        assert words.runtime.is_closed
        await words.take(topic, 2, "fine too")
        assert words.intake.subjects.next_offset + words.intake.feedback.next_offset <= 2
        strikes.close()
    output = FakeOutput()
    words = Words(output, strikes=Strikes(tmp_path / "worker"))
    async with writing(words.runtime):
        for offset, each in enumerate(["fine", word, "fine too"]):
            await words.take(topic, offset, each)
        await settle()
    assert [record.topic for record in output.sent] == ["samples.v1", f"{topic}.dlq.v1", "samples.v1"]
    letter = dead_letter_pb2.DeadLetter.FromString(output.sent[1].value)
    assert (letter.source_topic, letter.source_offset, letter.reason) == (topic, 1, "killed_worker")
    assert letter.detail == f"the worker died on it 2 times: {error}"
    assert words.runtime.new_counts()["killed_worker"] == 1
