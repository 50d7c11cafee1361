import asyncio

import pytest
from tunemesh.events.v1 import exposure_pb2

from services.common import telemetry
from services.common.envelope import header
from services.common.kafka_async import NotAcknowledged
from services.router import exposure_log as exposure_log_module
from services.router.core import Exposure, Query, Recommendation
from services.router.exposure_log import KafkaExposureLog, to_record
from services.router.spool import Spool
from tests.edge_fakes import FakeSender, ranking_of


def exposure(number: int) -> Exposure:
    query = Query(user_id=f"user-{number}", candidates=("a", "b"), limit=2)
    answer = Recommendation(request_id=f"request-{number}", experiment="", variant="default", ranking=ranking_of(query))
    return Exposure(
        user_id=query.user_id, exposed_at_ms=1_700_000_000_000, idempotency_key="k", candidates_given=True, recommendation=answer
    )


def ids(records) -> list[str]:
    return [exposure_pb2.Exposure.FromString(record.value).request_id for record in records]


def expected(numbers) -> list[str]:
    return [f"request-{number}" for number in numbers]


class Bench:
    def __init__(self, folder, sender: FakeSender | None = None, *, max_buffered: int = 100, max_bytes: int = 1 << 20) -> None:
        self.sender = sender or FakeSender()
        self.spool = Spool(folder, max_bytes=max_bytes, variable="X")
        self.log = KafkaExposureLog(
            self.sender, self.spool, max_buffered=max_buffered, flush_interval_ms=1, telemetry=telemetry.disabled("router")
        )

    async def until(self, condition) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(exposure_log_module, "_RETRY_S", 0.01)


def test_the_record_says_what_was_shown_to_whom_and_carries_the_trace():
    signals = telemetry.disabled()
    with signals.span("request"):
        record = to_record(exposure(1))
        traceparent = telemetry.current_traceparent()
    value = exposure_pb2.Exposure.FromString(record.value)
    assert (record.topic, record.key) == ("exposures.v1", b"user-1")
    assert (value.request_id, value.user_id, list(value.item_ids)) == ("request-1", "user-1", ["a", "b"])
    assert (value.features_block, value.schema_hash, value.model_version) == (b"block", "h", "1.7")
    assert (value.variant, value.idempotency_key, value.candidates_given) == ("default", "k", True)
    assert value.exposed_at_ms == 1_700_000_000_000
    assert header(record.headers, "traceparent") == traceparent
    assert (header(record.headers, "ce_id"), header(record.headers, "ce_type")) == ("request-1", "tunemesh.events.v1.Exposure")


async def test_exposures_reach_kafka_in_order(tmp_path):
    bench = Bench(tmp_path)
    bench.log.start()
    for number in range(20):
        bench.log.append(exposure(number))
    await bench.until(lambda: len(bench.sender.sent) == 20)
    assert ids(bench.sender.sent) == expected(range(20))
    await bench.log.close()
    assert bench.log.counts == {"sent": 20}


async def test_while_kafka_is_away_exposures_wait_on_disk_and_come_out_in_order(tmp_path):
    bench = Bench(tmp_path, FakeSender(away=True))
    bench.log.start()
    for number in range(10):
        bench.log.append(exposure(number))
        await asyncio.sleep(0.003)
    await bench.until(lambda: bench.log.counts["spooled"] == 10)
    assert bench.sender.sent == [] and bench.spool.num_bytes > 0
    bench.sender.away = False
    bench.log.append(exposure(10))
    await bench.until(lambda: len(bench.sender.sent) == 11)
    assert ids(bench.sender.sent) == expected(range(11))
    await bench.until(lambda: bench.spool.empty)
    await bench.log.close()


async def test_what_is_left_at_the_end_is_sent_by_the_next_process(tmp_path):
    first = Bench(tmp_path, FakeSender(away=True))
    first.log.start()
    for number in range(5):
        first.log.append(exposure(number))
    await first.log.close()
    second = Bench(tmp_path)
    second.log.start()
    second.log.append(exposure(5))
    await second.until(lambda: len(second.sender.sent) == 6)
    assert ids(second.sender.sent) == expected(range(6))
    await second.log.close()


async def test_closing_sends_what_is_still_buffered(tmp_path):
    bench = Bench(tmp_path)
    for number in range(3):
        bench.log.append(exposure(number))
    await bench.log.close()
    assert ids(bench.sender.sent) == expected(range(3))


async def test_a_full_buffer_drops_and_counts_and_never_blocks(tmp_path):
    bench = Bench(tmp_path, max_buffered=3)
    for number in range(5):
        bench.log.append(exposure(number))
    assert bench.log.counts["dropped"] == 2
    await bench.log.close()
    assert ids(bench.sender.sent) == expected(range(3))


async def test_a_full_spool_drops_and_counts(tmp_path):
    bench = Bench(tmp_path, FakeSender(away=True), max_bytes=1_200)
    for number in range(10):
        bench.log.append(exposure(number))
    await bench.log.close()
    assert bench.log.counts["spooled"] > 0
    assert bench.log.counts["spooled"] + bench.log.counts["dropped"] == 10


async def test_a_disk_that_refuses_is_counted_and_the_log_goes_on(tmp_path, monkeypatch):
    bench = Bench(tmp_path, FakeSender(away=True))

    def refuse(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.spool, "append", refuse)
    bench.log.start()
    bench.log.append(exposure(1))
    await bench.until(lambda: bench.log.counts["dropped"] == 1)
    bench.sender.away = False
    bench.log.append(exposure(2))
    await bench.until(lambda: len(bench.sender.sent) == 1)
    await bench.log.close()


async def test_only_what_the_broker_did_not_acknowledge_is_sent_again(tmp_path):
    class HalfSender(FakeSender):
        async def send(self, records):
            if self.away:
                self.away = False
                self.sent.extend(records[:2])
                raise NotAcknowledged("half", records[2:])
            self.sent.extend(records)

    bench = Bench(tmp_path, HalfSender(away=True))
    for number in range(5):
        bench.log.append(exposure(number))
    bench.log.start()
    await bench.until(lambda: len(bench.sender.sent) == 5)
    assert ids(bench.sender.sent) == expected(range(5))
    await bench.log.close()


async def test_a_defect_in_the_flusher_is_raised_to_whoever_watches(tmp_path):
    class BrokenSender(FakeSender):
        async def send(self, records):
            raise RuntimeError("defect")

    bench = Bench(tmp_path, BrokenSender())
    bench.log.start()
    bench.log.append(exposure(1))
    with pytest.raises(RuntimeError, match="defect"):
        await asyncio.wait_for(bench.log.watch(), 5)
    bench.spool.close()
