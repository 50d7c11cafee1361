import pytest
from tunemesh.common.v1 import chat_pb2
from tunemesh.events.v1 import dead_letter_pb2, example_pb2, feedback_pb2, generation_pb2

from services.common.events.generation import Generation
from services.common.platform import telemetry
from services.common.platform.clock import wall_ms
from services.common.platform.errors import Unavailable
from streams.curator.core import CurateConfig, CuratorPartition
from streams.curator.partition import curation_of
from streams.partitioned.reading_order import ReadingOrder
from streams.partitioned.records import Record
from streams.partitioned.runtime import PartitionRuntime
from streams.strikes import Strikes
from tests.unit.streams.curator.test_core import Kept, Seen
from tests.unit.streams.partitioned.test_intake import an_intake
from tests.unit.streams.partitioned.test_runtime import FakeMessage, FakeOutput, settle, writing


class Bench:
    def __init__(self, answers: Kept | None = None) -> None:
        self.output = FakeOutput()
        self.strikes = Strikes(None)
        self.acked: list[tuple[str, int]] = []
        core = CuratorPartition(CurateConfig(window_ms=60_000, wait_ms=1_000), an_intake(), answers or Kept(), Seen())
        self.runtime = PartitionRuntime(
            curation_of(core, telemetry.disabled()),
            self.output,
            ReadingOrder(),
            lambda message: self.acked.append((message.topic, message.offset)),
            self.strikes,
            source="/tunemesh/curator",
            max_outbox=100,
        )
        self.now_ms = wall_ms() - 120_000

    def generation(self, offset: int, **changes) -> FakeMessage:
        fields = {
            "request_id": "r1", "user_id": "u1", "task": "helpdesk", "question": "How long?", "answer": "A week.", "finish_reason": "stop",
            "messages": [chat_pb2.ChatMessage(role="user", content="How long?")], "finished_at_ms": self.now_ms,
        }  # fmt: skip
        return FakeMessage("generations.v1", offset, generation_pb2.Generation(**(fields | changes)).SerializeToString())

    def feedback(self, offset: int, **changes) -> FakeMessage:
        fields = {
            "feedback_id": f"f{offset}", "request_id": "r1", "user_id": "u1", "kind": "demonstration", "text": "Nine days.",
            "accepted_at_ms": self.now_ms + 5,
        }  # fmt: skip
        return FakeMessage("feedback.v1", offset, feedback_pb2.Feedback(**(fields | changes)).SerializeToString())


async def test_an_example_is_written_under_its_task_and_its_records_are_acknowledged_once_it_is_out() -> None:
    bench = Bench()
    async with writing(bench.runtime):
        await bench.runtime.take(bench.generation(0))
        await bench.runtime.take(bench.feedback(0))
        bench.runtime.tick(bench.now_ms + 1_000, (1, 1))
        await settle()
        [record] = bench.output.sent  # and nothing that tells of the cut
    assert (record.topic, record.key, record.partition) == ("llm.examples.v1", b"helpdesk", None)
    example = example_pb2.LlmExample.FromString(record.value or b"")
    assert (example.answer, example.feedback_id) == ("Nine days.", "f0")
    assert dict(record.headers)["ce_id"].decode() == example.example_id
    assert bench.acked == [("generations.v1", 0), ("feedback.v1", 0)]


async def test_what_is_the_joiners_is_stepped_over_and_what_breaks_the_contract_is_set_aside() -> None:
    bench = Bench()
    async with writing(bench.runtime):
        await bench.runtime.take(FakeMessage("feedback.v1", 0, b"\xff\xff"))
        await bench.runtime.take(bench.feedback(1, item_id="i1", kind="rating", value=float("nan")))
        await bench.runtime.take(bench.feedback(2, text=""))
        await bench.runtime.take(FakeMessage("generations.v1", 0, b"\xff\xff"))
        bench.runtime.tick(bench.now_ms + 1_000, (1, 3))
        await settle()
    letters = [dead_letter_pb2.DeadLetter.FromString(record.value or b"") for record in bench.output.sent]
    assert [(letter.source_topic, letter.source_offset, letter.reason) for letter in letters] == [
        ("feedback.v1", 2, "malformed"),
        ("generations.v1", 0, "malformed"),
    ]
    assert bench.acked == [("generations.v1", 0), ("feedback.v1", 0), ("feedback.v1", 1), ("feedback.v1", 2)]


async def test_personal_data_is_in_no_dead_letter() -> None:
    bench = Bench()
    async with writing(bench.runtime):
        await bench.runtime.take(bench.generation(0))
        await bench.runtime.take(bench.feedback(0, text="Ask jane@example.com."))
        await settle()
    [record] = bench.output.sent
    letter = dead_letter_pb2.DeadLetter.FromString(record.value or b"")
    assert (record.topic, letter.reason, letter.value) == ("feedback.v1.dlq.v1", "pii", b"") and b"jane" not in (record.value or b"")


class Broken(Kept):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def put(self, generation: Generation, record: Record) -> None:
        raise self.error


@pytest.mark.parametrize(("error", "is_its_fault"), [(Unavailable("the disk is full"), False), (RuntimeError("defect"), True)])
async def test_a_disk_that_is_full_is_no_records_fault_and_a_defect_is(error: Exception, is_its_fault: bool) -> None:
    bench = Bench(Broken(error))
    message = bench.generation(0)
    with pytest.raises(type(error)):
        await bench.runtime.take(message)
    assert bench.strikes.is_suspect(message) is is_its_fault
