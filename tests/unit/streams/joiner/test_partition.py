import pytest
from tunemesh.events.v1 import dead_letter_pb2
from tunemesh.samples.v1 import sample_pb2

from services.common.platform import telemetry
from services.common.platform.clock import wall_ms
from services.common.platform.ids import sample_id
from services.common.platform.traceparent import current_traceparent
from services.common.ranker.labels import keep_negative
from streams.joiner.core import JoinerPartition
from streams.joiner.partition import join_of
from streams.partitioned.reading_order import ReadingOrder
from streams.partitioned.runtime import PartitionRuntime
from streams.strikes import Strikes
from tests.unit.streams.joiner.bench import CONFIG, SPEC
from tests.unit.streams.joiner.test_codec import a_feedback, an_exposure
from tests.unit.streams.partitioned.test_intake import an_intake
from tests.unit.streams.partitioned.test_runtime import FakeMessage, FakeOutput, settle, writing

# A request of which at least one unanswered item is kept as a negative.
REQUEST = next(name for name in map(str, range(100)) if keep_negative(sample_id(name, "a", 0), SPEC.negatives.keep_rate))


class Bench:
    def __init__(self) -> None:
        self.output = FakeOutput()
        self.acked: list[tuple[str, int]] = []
        self.joiner = JoinerPartition(SPEC, CONFIG, an_intake())
        self.runtime = PartitionRuntime(
            join_of(0, self.joiner, SPEC.schema_hash, telemetry.disabled()),
            self.output,
            ReadingOrder(),
            lambda message: self.acked.append((message.topic, message.offset)),
            Strikes(None),
            source="/tunemesh/joiner",
            max_outbox=100,
        )
        self.now_ms = wall_ms() - 120_000

    def exposure(self, offset: int, **changes) -> FakeMessage:
        return FakeMessage(
            "exposures.v1", offset, an_exposure(request_id=REQUEST, exposed_at_ms=self.now_ms, **changes).SerializeToString()
        )

    def feedback(self, offset: int, **changes) -> FakeMessage:
        return FakeMessage(
            "feedback.v1", offset, a_feedback(request_id=REQUEST, accepted_at_ms=self.now_ms + 5, **changes).SerializeToString()
        )

    def records(self) -> list[str | None]:
        kinds = []
        for record in self.output.sent:
            is_sample = record.topic == "samples.v1"
            kinds.append(sample_pb2.SampleRecord.FromString(record.value or b"").WhichOneof("record") if is_sample else record.topic)
        return kinds


async def test_a_request_is_acknowledged_behind_the_tick_that_follows_its_negatives() -> None:
    bench = Bench()
    async with writing(bench.runtime):
        await bench.runtime.take(bench.exposure(0))
        await bench.runtime.take(bench.feedback(0))
        bench.runtime.tick(bench.now_ms + 1_000, (1, 1))
        await settle()
        assert bench.records() == ["group", "tick"]
        assert bench.acked == []
        bench.runtime.tick(wall_ms(), (1, 1))
        await settle()
    assert bench.records() == ["group", "tick", "group", "tick"]
    assert bench.acked == [("exposures.v1", 0), ("feedback.v1", 0)]
    assert {record.partition for record in bench.output.sent} == {0}
    assert current_traceparent() == ""


async def test_a_failed_send_acknowledges_nothing() -> None:
    bench = Bench()
    bench.output.acknowledges = False
    async with writing(bench.runtime) as task:
        await bench.runtime.take(bench.exposure(0))
        await bench.runtime.take(bench.feedback(0))
        bench.runtime.tick(wall_ms(), (1, 1))
        await settle()
        bench.output.futures[0].set_exception(ConnectionError("gone"))
        bench.output.futures[1].set_result(None)
        await settle()
        with pytest.raises(ConnectionError):
            task.result()
    assert bench.acked == []


async def test_bad_and_misplaced_records_go_where_they_belong() -> None:
    bench = Bench()
    async with writing(bench.runtime):
        await bench.runtime.take(
            FakeMessage(
                "exposures.v1", 0, b"\xff\xff", headers=(("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)
            )
        )
        await bench.runtime.take(bench.feedback(0, kind="sneeze"))
        await bench.runtime.take(bench.feedback(1, user_id="elsewhere"))
        await settle()
    bad, unknown, forwarded = bench.output.sent
    assert (bad.topic, unknown.topic) == ("exposures.v1.dlq.v1", "feedback.v1.dlq.v1")
    letter = dead_letter_pb2.DeadLetter.FromString(bad.value or b"")
    assert (letter.reason, letter.value, letter.source_offset, letter.key) == ("malformed", b"\xff\xff", 0, b"u1")
    assert dead_letter_pb2.DeadLetter.FromString(unknown.value or b"").feedback_id == "f1"
    assert (forwarded.topic, forwarded.partition, forwarded.value) == ("feedback.v1", 1, bench.feedback(1, user_id="elsewhere").value)
