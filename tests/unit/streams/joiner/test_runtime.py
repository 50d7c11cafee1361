import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest
from tunemesh.events.v1 import dead_letter_pb2
from tunemesh.samples.v1 import sample_pb2

from services.common.platform import telemetry
from services.common.platform.ids import sample_id
from services.common.platform.telemetry import current_traceparent
from services.common.ranker.labels import keep_negative
from streams.joiner.core import JoinerPartition
from streams.joiner.runtime import PartitionRuntime, wall_clock_ms
from streams.reading_order import ReadingOrder
from tests.unit.streams.joiner.test_codec import a_feedback, an_exposure
from tests.unit.streams.joiner.test_core import CONFIG, SPEC

# A request of which at least one unanswered item is kept as a negative.
REQUEST = next(name for name in map(str, range(100)) if keep_negative(sample_id(name, "a", 0), SPEC.negatives.keep_rate))


@dataclass
class FakeMessage:
    topic: str
    offset: int
    value: bytes | None
    key: bytes = b"u1"
    headers: tuple = ()
    partition: int = 0


@dataclass
class FakeSender:
    """Records what is sent; acknowledges when told to, or at once."""

    acknowledges: bool = True
    sent: list = field(default_factory=list)
    futures: list = field(default_factory=list)

    async def send(self, topic, *, partition, key, value, headers):
        future = asyncio.get_running_loop().create_future()
        self.sent.append((topic, partition, value, dict(headers)))
        self.futures.append(future)
        if self.acknowledges:
            future.set_result(None)
        return future


class Bench:
    def __init__(self) -> None:
        self.sender = FakeSender()
        self.acked: list[tuple[str, int]] = []
        joiner = JoinerPartition(0, SPEC, CONFIG, lambda user: 1 if user == "elsewhere" else 0)

        def ack(message: FakeMessage) -> None:
            self.acked.append((message.topic, message.offset))

        self.runtime = PartitionRuntime(0, joiner, SPEC.schema_hash, self.sender, telemetry.disabled(), ReadingOrder(), ack)
        self.now_ms = wall_clock_ms() - 120_000

    def exposure(self, offset: int, **changes) -> FakeMessage:
        return FakeMessage(
            "exposures.v1", offset, an_exposure(request_id=REQUEST, exposed_at_ms=self.now_ms, **changes).SerializeToString()
        )

    def feedback(self, offset: int, **changes) -> FakeMessage:
        return FakeMessage(
            "feedback.v1", offset, a_feedback(request_id=REQUEST, accepted_at_ms=self.now_ms + 5, **changes).SerializeToString()
        )

    def records(self) -> list[str]:
        kinds = []
        for topic, _, value, _ in self.sender.sent:
            kinds.append(sample_pb2.SampleRecord.FromString(value).WhichOneof("record") if topic == "samples.v1" else topic)
        return kinds


@contextlib.asynccontextmanager
async def writing(bench: Bench):
    task = asyncio.create_task(bench.runtime.write())
    yield task
    task.cancel()
    await asyncio.wait({task})


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_is_done_is_acknowledged_in_order_behind_its_tick() -> None:
    bench = Bench()
    async with writing(bench):
        await bench.runtime.take_exposure(bench.exposure(0))
        await bench.runtime.take_feedback(bench.feedback(0))
        bench.runtime.tick(bench.now_ms + 1_000, exposures_end=1, feedback_end=1)
        await settle()
        assert bench.records() == ["group", "tick"]
        assert bench.acked == []
        bench.runtime.tick(wall_clock_ms(), exposures_end=1, feedback_end=1)
        await settle()
        assert bench.records() == ["group", "tick", "group", "tick"]
        assert bench.acked == [("exposures.v1", 0), ("feedback.v1", 0)]


async def test_a_tick_waits_for_the_acknowledgement_of_everything_before_it() -> None:
    bench = Bench()
    bench.sender.acknowledges = False
    async with writing(bench):
        await bench.runtime.take_exposure(bench.exposure(0))
        await bench.runtime.take_feedback(bench.feedback(0))
        bench.runtime.tick(wall_clock_ms(), exposures_end=1, feedback_end=1)
        await settle()
        assert bench.records() == ["group", "group"]
        for future in bench.sender.futures:
            future.set_result(None)
        await settle()
        assert bench.records() == ["group", "group", "tick"]
        assert bench.acked == []  # the tick itself is not acknowledged yet
        bench.sender.futures[-1].set_result(None)
        await settle()
        assert bench.acked == [("exposures.v1", 0), ("feedback.v1", 0)]


async def test_a_tick_is_left_out_while_the_last_one_is_not_written() -> None:
    bench = Bench()
    bench.sender.acknowledges = False
    async with writing(bench):
        for _ in range(3):
            bench.runtime.tick(wall_clock_ms(), exposures_end=0, feedback_end=0)
        await settle()
        bench.sender.futures[0].set_result(None)
        await settle()
        assert bench.records() == ["tick"]


async def test_a_send_that_fails_ends_the_writing_and_acknowledges_nothing() -> None:
    bench = Bench()
    bench.sender.acknowledges = False
    async with writing(bench) as task:
        await bench.runtime.take_exposure(bench.exposure(0))
        await bench.runtime.take_feedback(bench.feedback(0))
        bench.runtime.tick(wall_clock_ms(), exposures_end=1, feedback_end=1)
        await settle()
        bench.sender.futures[0].set_exception(ConnectionError("gone"))
        bench.sender.futures[1].set_result(None)
        await asyncio.wait({task})
        with pytest.raises(ConnectionError):
            task.result()
        assert bench.acked == []


async def test_bad_and_misplaced_records_go_where_they_belong() -> None:
    bench = Bench()
    async with writing(bench):
        await bench.runtime.take_exposure(FakeMessage("exposures.v1", 0, b"\xff\xff", headers=(("traceparent", b"00-a-b-01"),)))
        await bench.runtime.take_feedback(bench.feedback(0, kind="sneeze"))
        await bench.runtime.take_feedback(bench.feedback(1, user_id="elsewhere"))
        await settle()
    (bad, _, bad_value, bad_headers), (unknown, _, unknown_value, _), forwarded = bench.sender.sent
    assert (bad, unknown) == ("exposures.v1.dlq.v1", "feedback.v1.dlq.v1")
    assert bad_headers["traceparent"] == b"00-a-b-01"
    letter = dead_letter_pb2.DeadLetter.FromString(bad_value)
    assert (letter.reason, letter.value, letter.source_offset, letter.key) == ("malformed", b"\xff\xff", 0, b"u1")
    assert dead_letter_pb2.DeadLetter.FromString(unknown_value).feedback_id == "f1"
    assert forwarded[:3] == ("feedback.v1", 1, bench.feedback(1, user_id="elsewhere").value)


async def test_messages_are_kept_without_their_content_until_they_are_acknowledged() -> None:
    bench = Bench()
    message = bench.exposure(0)
    await bench.runtime.take_exposure(message)
    assert message.value is None


async def test_a_closed_partition_takes_nothing_more() -> None:
    bench = Bench()
    bench.runtime.close()
    await bench.runtime.take_exposure(bench.exposure(0))
    await bench.runtime.take_feedback(bench.feedback(0))
    assert bench.runtime.joiner.num_pending == 0


async def test_counts_are_told_once() -> None:
    bench = Bench()
    await bench.runtime.take_exposure(bench.exposure(0))
    assert bench.runtime.new_counts() == {"exposures": 1}
    assert bench.runtime.new_counts() == {}
    assert current_traceparent() == ""
