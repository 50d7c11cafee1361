import asyncio
import errno

import pytest
from tunemesh.events.v1 import exposure_pb2
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.limits import MAX_RECORD_BYTES
from services.common.events.undeliverable import EXCERPT_BYTES
from services.common.platform import telemetry
from services.common.platform.errors import Overloaded
from services.common.platform.kafka_record import NotAcknowledged, Record, Refusal
from services.router import event_log as event_log_module
from services.router.core import Exposure, Query, Recommendation
from services.router.event_log import KafkaEventLog
from services.router.records import exposure_record
from services.router.spool import Spool
from tests.edge_fakes import FakeSender, ranking_of
from tests.limits import seconds


def exposure(number: int) -> Exposure:
    query = Query(user_id=f"user-{number}", candidates=("a", "b"), limit=2)
    answer = Recommendation(request_id=f"request-{number}", experiment="", variant="default", ranking=ranking_of(query))
    return Exposure(
        user_id=query.user_id, exposed_at_ms=1_700_000_000_000, idempotency_key="k", candidates_given=True, recommendation=answer
    )


def record(number: int) -> Record:
    return exposure_record(exposure(number))


def ids(records) -> list[str]:
    return [exposure_pb2.Exposure.FromString(record.value).request_id for record in records]


def expected(numbers) -> list[str]:
    return [f"request-{number}" for number in numbers]


class Bench:
    def __init__(self, folder, sender: FakeSender | None = None, *, max_buffered: int = 100, max_bytes: int = 1 << 20) -> None:
        self.sender = sender or FakeSender()
        self.spool = Spool(folder, max_bytes=max_bytes, variable="X")
        self.log = KafkaEventLog(
            self.sender, self.spool, max_buffered=max_buffered, flush_interval_ms=1, telemetry=telemetry.disabled("router")
        )

    async def until(self, condition) -> None:
        async with asyncio.timeout(seconds(20)):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(event_log_module, "_RETRY_S", 0.01)


async def test_exposures_reach_kafka_in_order(tmp_path):
    bench = Bench(tmp_path)
    bench.log.start()
    for number in range(20):
        bench.log.append(record(number))
    await bench.until(lambda: len(bench.sender.sent) == 20)
    assert ids(bench.sender.sent) == expected(range(20))
    await bench.log.close()
    assert bench.log.counts == {"sent": 20}


async def test_while_kafka_is_down_exposures_wait_on_disk_and_come_out_in_order(tmp_path):
    bench = Bench(tmp_path, FakeSender(is_down=True))
    bench.log.start()
    for number in range(10):
        bench.log.append(record(number))
        await asyncio.sleep(0.003)
    await bench.until(lambda: bench.log.counts["spooled"] == 10)
    assert bench.sender.sent == [] and bench.spool.num_bytes > 0
    bench.sender.is_down = False
    bench.log.append(record(10))
    await bench.until(lambda: len(bench.sender.sent) == 11)
    assert ids(bench.sender.sent) == expected(range(11))
    await bench.until(lambda: bench.spool.empty)
    await bench.log.close()


async def test_what_is_left_at_the_end_is_sent_by_the_next_process(tmp_path):
    first = Bench(tmp_path, FakeSender(is_down=True))
    first.log.start()
    for number in range(5):
        first.log.append(record(number))
    await first.log.close()
    second = Bench(tmp_path)
    second.log.start()
    second.log.append(record(5))
    await second.until(lambda: len(second.sender.sent) == 6)
    assert ids(second.sender.sent) == expected(range(6))
    await second.log.close()


async def test_closing_sends_what_is_still_buffered(tmp_path):
    bench = Bench(tmp_path)
    for number in range(3):
        bench.log.append(record(number))
    await bench.log.close()
    assert ids(bench.sender.sent) == expected(range(3))


async def test_a_full_buffer_drops_and_counts_and_never_blocks(tmp_path):
    bench = Bench(tmp_path, max_buffered=3)
    for number in range(5):
        bench.log.append(record(number))
    assert bench.log.counts["dropped"] == 2
    await bench.log.close()
    assert ids(bench.sender.sent) == expected(range(3))


@pytest.mark.parametrize("times", [1, 10])
async def test_what_waits_is_bounded_by_its_bytes_too(tmp_path, monkeypatch, times):
    monkeypatch.setattr(event_log_module, "_MAX_BUFFERED_BYTES", 10_000)
    bench = Bench(tmp_path, max_buffered=10_000)
    one = Record("exposures.v1", b"u", b"x" * 1_000, [])
    for _ in range(11 * times):
        bench.log.append(one)
    assert bench.log.counts["dropped"] == 11 * times - 11
    await bench.log.close()
    assert len(bench.sender.sent) == 11
    bench = Bench(tmp_path, max_buffered=10_000)
    bench.log.start()
    for count in range(1, 31):  # what was sent no longer counts
        bench.log.append(one)
        await bench.until(lambda count=count: len(bench.sender.sent) == count)
    await bench.log.close()
    assert not bench.log.counts["dropped"]


async def test_a_full_spool_drops_and_counts(tmp_path):
    bench = Bench(tmp_path, FakeSender(is_down=True), max_bytes=1_200)
    for number in range(10):
        bench.log.append(record(number))
    await bench.log.close()
    assert bench.log.counts["spooled"] > 0
    assert bench.log.counts["spooled"] + bench.log.counts["dropped"] == 10


async def test_a_disk_that_refuses_is_counted_and_the_log_goes_on(tmp_path, monkeypatch):
    bench = Bench(tmp_path, FakeSender(is_down=True))

    def refuse(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.spool, "append", refuse)
    bench.log.start()
    bench.log.append(record(1))
    await bench.until(lambda: bench.log.counts["dropped"] == 1)
    bench.sender.is_down = False
    bench.log.append(record(2))
    await bench.until(lambda: len(bench.sender.sent) == 1)
    await bench.log.close()


@pytest.mark.parametrize("recovers", [True, False])
async def test_a_spool_that_cannot_be_read_ends_nothing(tmp_path, monkeypatch, recovers):
    monkeypatch.setattr(event_log_module, "_MAX_FAILED_READS", 1_000_000 if recovers else 3)
    bench = Bench(tmp_path, FakeSender(is_down=True))
    num_failed, peek = 0, bench.spool.peek

    def fails(limit):
        nonlocal num_failed
        if (recovers and num_failed >= 5) or not bench.spool._segments:
            return peek(limit)
        num_failed += 1
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(bench.spool, "peek", fails)
    bench.log.start()
    bench.log.append(record(0))
    await bench.until(lambda: num_failed >= 3)
    bench.sender.is_down = False
    await bench.until(lambda: bench.spool.empty)
    bench.log.append(record(1))
    await bench.until(lambda: len(bench.sender.sent) == (2 if recovers else 1))
    assert ids(bench.sender.sent) == expected([0, 1] if recovers else [1])
    await bench.log.close()


async def test_what_is_buffered_when_the_flusher_ends_by_a_defect_is_kept(tmp_path, monkeypatch):
    bench = Bench(tmp_path)

    async def defect() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(bench.log, "_run", defect)
    bench.log.start()
    bench.log.append(record(0))
    with pytest.raises(RuntimeError, match="a defect"):
        await bench.log.watch()
    await bench.log.close()
    assert ids(bench.sender.sent) == expected([0])


async def test_only_what_the_broker_did_not_acknowledge_is_sent_again(tmp_path):
    class HalfSender(FakeSender):
        async def send(self, records):
            if self.is_down:
                self.is_down = False
                self.sent.extend(records[:2])
                raise NotAcknowledged("half", records[2:])
            self.sent.extend(records)

    bench = Bench(tmp_path, HalfSender(is_down=True))
    for number in range(5):
        bench.log.append(record(number))
    bench.log.start()
    await bench.until(lambda: len(bench.sender.sent) == 5)
    assert ids(bench.sender.sent) == expected(range(5))
    await bench.log.close()


class PickySender(FakeSender):
    """A broker that refuses what is larger than `most`."""

    def __init__(self, most: int, *, letters: int | None = None) -> None:
        super().__init__()
        self.most, self.most_of_letters = most, most if letters is None else letters
        self.num_calls = 0

    async def send(self, records):
        self.num_calls += 1
        if self.is_down:
            raise NotAcknowledged("down", records)
        refused = [one for one in records if len(one.value) > (self.most_of_letters if ".dlq." in one.topic else self.most)]
        self.sent.extend(one for one in records if one not in refused)
        if refused:
            raise NotAcknowledged("refused", [], refused=[Refusal(one, "MessageSizeTooLargeError()") for one in refused])


def large(number: int, size: int) -> Record:
    one = record(number)
    return Record(one.topic, one.key, one.value + b"\x00" * size, one.headers)


@pytest.mark.parametrize("letters", [100_000, 5_000])
async def test_what_the_broker_refuses_goes_to_the_dead_letters_and_holds_nothing_up(tmp_path, letters: int):
    bench = Bench(tmp_path, PickySender(20_000, letters=letters))
    for number in range(30):
        bench.log.append(large(number, 30_000) if number in (0, 17, 29) else record(number))
    bench.log.start()
    await bench.until(lambda: bench.log.counts["sent"] + bench.log.counts["set_aside"] == 30 and bench.spool.empty)
    await bench.log.close()
    kept = [one for one in bench.sender.sent if one.topic == "exposures.v1"]
    assert ids(kept) == expected(number for number in range(30) if number not in (0, 17, 29))
    found = [DeadLetter.FromString(one.value) for one in bench.sender.sent if one.topic == "exposures.v1.dlq.v1"]
    assert [letter.key for letter in found] == [b"user-0", b"user-17", b"user-29"]
    assert {(letter.source_topic, letter.source_partition, letter.reason) for letter in found} == {("exposures.v1", -1, "undeliverable")}
    assert len({letter.source_offset for letter in found}) == 3
    if letters > 30_000:
        assert found[1].value == large(17, 30_000).value
    else:
        assert found[1].value == large(17, 30_000).value[:EXCERPT_BYTES] and "(value cut from 30" in found[1].detail
    assert bench.sender.num_calls < 50


async def test_what_cannot_even_be_set_aside_is_dropped_and_counted(tmp_path):
    bench = Bench(tmp_path, PickySender(20_000, letters=10))
    bench.log.append(large(1, 30_000))
    bench.log.append(record(2))
    bench.log.start()
    await bench.until(lambda: bench.log.counts["sent"] == 1 and bench.log.counts["dropped"] + bench.log.counts["set_aside"] > 0)
    await bench.log.close()
    assert (bench.log.counts["dropped"], bench.log.counts["set_aside"]) == (1, 0)


async def test_a_poisoned_spool_of_an_earlier_process_is_emptied(tmp_path):
    earlier = Bench(tmp_path, PickySender(20_000))
    earlier.sender.is_down = True
    for number in range(5):
        earlier.log.append(large(number, 30_000) if number == 0 else record(number))
    earlier.log.start()
    await earlier.until(lambda: earlier.log.counts["spooled"] == 5)
    await earlier.log.close()
    bench = Bench(tmp_path, PickySender(20_000, letters=100_000))
    bench.log.start()
    await bench.until(lambda: bench.spool.empty)
    assert bench.log.counts == {"sent": 4, "set_aside": 1}
    await bench.log.close()


async def test_a_broker_that_goes_down_half_way_gets_the_rest_later_and_nothing_twice(tmp_path):
    class Fading(PickySender):
        async def send(self, records):
            if len(records) > 3 and not self.has_faded:
                self.has_faded = True
                await super().send(records[1:3])
                raise NotAcknowledged("down", [records[0], *records[3:]])
            await super().send(records)

    sender = Fading(20_000, letters=100_000)
    sender.has_faded = False
    earlier = Bench(tmp_path, FakeSender(is_down=True))
    for number in range(8):
        earlier.log.append(large(number, 30_000) if number == 5 else record(number))
    await earlier.log.close()
    bench = Bench(tmp_path, sender)
    bench.log.start()
    await bench.until(lambda: bench.log.counts["sent"] + bench.log.counts["set_aside"] == 8 and bench.spool.empty)
    await bench.log.close()
    assert bench.log.counts == {"sent": 7, "set_aside": 1}
    assert ids(one for one in sender.sent if one.topic == "exposures.v1") == expected([1, 2, 0, 3, 4, 6, 7])


@pytest.mark.parametrize("is_down_first", [True, False])
async def test_one_refused_record_in_a_hundred_costs_next_to_no_sends(tmp_path, is_down_first: bool):
    num_calls = {}
    for share in (10**9, 100):
        bench = Bench(tmp_path / str(share), PickySender(20_000, letters=100_000), max_buffered=10_000, max_bytes=1 << 26)
        bench.sender.is_down = is_down_first
        bench.log.start()
        for number in range(5_000):
            bench.log.append(large(number, 30_000) if number % share == share - 1 else record(number))
        if is_down_first:
            await bench.until(lambda log=bench.log: log.counts["spooled"] == 5_000)
            bench.sender.num_calls, bench.sender.is_down = 0, False
        await bench.until(lambda log=bench.log: log.counts["sent"] + log.counts["set_aside"] == 5_000)
        await bench.until(lambda spool=bench.spool: spool.empty)
        await bench.log.close()
        num_calls[share] = bench.sender.num_calls
        sent = [one for one in bench.sender.sent if one.topic == "exposures.v1"]
        assert len(sent) == len(set(ids(sent))) == bench.log.counts["sent"] == 5_000 - 5_000 // share
        assert bench.log.counts["set_aside"] == 5_000 // share
    assert num_calls[100] < 2 * num_calls[10**9]


async def test_a_producer_that_has_no_room_does_not_end_the_flusher(tmp_path):
    class Full(FakeSender):
        async def send(self, records):
            if not self.is_down:
                self.is_down = True
                raise Overloaded("full")
            self.sent.extend(records)

    bench = Bench(tmp_path, Full())
    bench.log.append(record(1))
    bench.log.start()
    await bench.until(lambda: bench.log.counts["sent"] == 1 and bench.spool.empty)
    await bench.log.close()


async def test_what_is_larger_than_any_record_of_ours_goes_to_the_dead_letters(tmp_path):
    bench = Bench(tmp_path)
    for number, size in enumerate((0, MAX_RECORD_BYTES, 10 * MAX_RECORD_BYTES, 0)):
        bench.log.append(large(number, size) if size else record(number))
    bench.log.start()
    await bench.until(lambda: bench.log.counts["sent"] + bench.log.counts["set_aside"] == 4)
    await bench.log.close()
    assert bench.log.counts == {"sent": 2, "set_aside": 2}
    assert ids(one for one in bench.sender.sent if one.topic == "exposures.v1") == expected([0, 3])
    letters = [DeadLetter.FromString(one.value) for one in bench.sender.sent if one.topic == "exposures.v1.dlq.v1"]
    assert [letter.key for letter in letters] == [b"user-1", b"user-2"]
    for letter in letters:
        assert (letter.reason, len(letter.value)) == ("undeliverable", EXCERPT_BYTES)
        assert "at most 900000 bytes" in letter.detail and "(value cut from 9000" in letter.detail


async def test_a_defect_in_the_flusher_is_raised_to_whoever_watches(tmp_path):
    class BrokenSender(FakeSender):
        async def send(self, records):
            raise RuntimeError("defect")

    bench = Bench(tmp_path, BrokenSender())
    bench.log.start()
    bench.log.append(record(1))
    with pytest.raises(RuntimeError, match="defect"):
        await asyncio.wait_for(bench.log.watch(), seconds(20))
    bench.spool.close()
