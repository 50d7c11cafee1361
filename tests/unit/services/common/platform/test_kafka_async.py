"""The asyncio producer over a broker in memory that refuses as Apache Kafka does: a batch as a whole, by its size."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError, OutOfOrderSequenceNumber

from services.common.platform import kafka_async
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.kafka_record import NotAcknowledged, Record
from tests.limits import seconds

NUM_PARTITIONS = 4
ROUND_TRIP_S = 0.002


class Clock(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Time that passes only while everything waits."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now_s += timeout or 0.0
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """An event loop on that clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now_s


@dataclass
class Broker:
    """What the connections share."""

    max_batch_bytes: int = 1_000_000
    fails_at: int = -1
    log: list[Record] = field(default_factory=list)
    round_trips: int = 0
    connections: int = 0


@dataclass
class Batch:
    since_s: float
    size: int = 0
    records: list[tuple[Record, asyncio.Future[object]]] = field(default_factory=list)


class Connection:
    """An AIOKafkaProducer: one batch of each partition a round trip; a refusal breaks the partition's sequence if there is one."""

    def __init__(self, broker: Broker, *, enable_idempotence: bool, max_batch_size: int, linger_ms: int, **_: Any) -> None:
        self.linger_s = linger_ms / 1e3
        self.broker, self.is_idempotent, self.max_batch_bytes = broker, enable_idempotence, max_batch_size
        self.waiting: dict[int, list[Batch]] = defaultdict(list)
        self.broken: set[int] = set()
        self.flusher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.broker.connections += 1

    async def stop(self) -> None:
        await self.flush()

    async def flush(self) -> None:
        if self.flusher is not None:
            await self.flusher

    async def send(self, topic: str, value: bytes, key: bytes, partition: int | None, headers: Any) -> asyncio.Future[object]:
        record = Record(topic, key, value, headers, partition)
        batches = self.waiting[sum(key) % NUM_PARTITIONS if partition is None else partition]
        size = len(value) + len(key)
        if not batches or batches[-1].size + size > self.max_batch_bytes:
            batches.append(Batch(asyncio.get_running_loop().time()))
        batches[-1].size += size
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        batches[-1].records.append((record, future))
        if self.flusher is None or self.flusher.done():
            self.flusher = asyncio.create_task(self._flush())
        return future

    async def _flush(self) -> None:
        now_s = asyncio.get_running_loop().time
        while waiting := {partition: batches for partition, batches in self.waiting.items() if batches}:
            # A batch waits for company until another one is begun behind it.
            linger_s = {at: self.linger_s - (now_s() - batches[0].since_s) if len(batches) == 1 else 0 for at, batches in waiting.items()}
            if min(linger_s.values()) > 1e-9:
                await asyncio.sleep(min(linger_s.values()))
                continue
            ready = {at: batches.pop(0) for at, batches in waiting.items() if linger_s[at] <= 1e-9}
            self.broker.round_trips += 1
            await asyncio.sleep(ROUND_TRIP_S)
            for partition, batch in ready.items():
                self._write(partition, batch)

    def _write(self, partition: int, batch: Batch) -> None:
        error: Exception | None = None
        if self.broker.round_trips == self.broker.fails_at:
            error = KafkaConnectionError("gone")
        elif partition in self.broken:
            error = OutOfOrderSequenceNumber()
        elif batch.size > self.broker.max_batch_bytes:
            error = MessageSizeTooLargeError()
            if self.is_idempotent:
                self.broken.add(partition)
        for record, future in batch.records:
            if error is None:
                self.broker.log.append(record)
                future.set_result(None)
            else:
                future.set_exception(error)


async def producer_of(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> AsyncProducer:
    monkeypatch.setattr(kafka_async, "AIOKafkaProducer", lambda **config: Connection(broker, **config))
    monkeypatch.setattr(Connection, "_message_accumulator", type("", (), {"fail_all": lambda *_: None})(), raising=False)
    producer = AsyncProducer("nowhere", client_id="test", delivery_timeout_ms=int(seconds(60) * 1e3))
    assert await producer.start(wait_s=5)
    return producer


def records(count: int, size: int, *, first: int = 0) -> list[Record]:
    return [Record("t", b"user-%d" % (number % 97), b"%d " % number + bytes(size)) for number in range(first, first + count)]


async def drain(producer: AsyncProducer, todo: list[Record]) -> list[Record]:
    """Send in batches of 500, what is open again; return what was refused."""
    refused = []
    while todo:
        batch, todo = todo[:500], todo[500:]
        try:
            await producer.send(batch)
        except NotAcknowledged as error:
            refused += [each.record for each in error.refused]
            todo = error.records + todo
    return refused


@pytest.mark.parametrize("bad_bytes", [150_000, 600_000])
def test_one_record_in_a_hundred_that_is_refused_costs_less_than_half_the_rate(monkeypatch, bad_bytes: int) -> None:
    async def took_s(bad: dict[int, Record]) -> float:
        broker = Broker(max_batch_bytes=100_000)
        producer = await producer_of(broker, monkeypatch)
        good = records(20_000, 1_000)
        started = asyncio.get_running_loop().time()
        refused = await drain(producer, [bad.get(number, each) for number, each in enumerate(good)])
        took = asyncio.get_running_loop().time() - started
        await producer.stop()
        assert sorted(map(id, refused)) == sorted(map(id, bad.values()))
        assert Counter(each.value for each in broker.log) == Counter(each.value for number, each in enumerate(good) if number not in bad)
        assert broker.connections <= 5, "one, one for lone records, and one for each time that the batch was halved"
        return took

    bad = {number: Record("t", b"user-%d" % (number % 97), bytes(bad_bytes)) for number in range(0, 20_000, 100)}
    with asyncio.Runner(loop_factory=Loop) as runner:
        alone_s, beside_bad_s = runner.run(took_s({})), runner.run(took_s(bad))
    assert beside_bad_s < 2 * alone_s
    print(alone_s, beside_bad_s)


async def test_a_backlog_larger_than_the_brokers_limit_on_a_batch_gets_through(monkeypatch) -> None:
    broker = Broker(max_batch_bytes=40_000)
    producer = await producer_of(broker, monkeypatch)
    for first in range(0, 5_000, 500):
        await producer.send(records(500, 1_000, first=first))
    await producer.stop()
    assert sorted(int(each.value.split()[0]) for each in broker.log) == list(range(5_000))
    assert broker.round_trips < 100, "a send of 500 has five batches for a partition, and the limit is learned once"


async def test_what_shares_its_key_with_a_large_record_keeps_its_order(monkeypatch) -> None:
    broker = Broker(max_batch_bytes=2_000_000)
    producer = await producer_of(broker, monkeypatch)
    sizes = (10, 600_000, 10, 700_000, 10)
    await producer.send([Record("t", key, b"%d " % number + bytes(size)) for key in (b"a", b"b") for number, size in enumerate(sizes)])
    await producer.stop()
    for key in (b"a", b"b"):
        assert [each.value.split()[0] for each in broker.log if each.key == key] == [b"0", b"1", b"2", b"3", b"4"]


async def test_what_names_its_partition_keeps_its_order_there_whatever_is_refused_in_between(monkeypatch) -> None:
    """Sends of two partitions side by side, each behind the other of its own, as the joiner's are."""
    broker = Broker(max_batch_bytes=60_000)
    producer = await producer_of(broker, monkeypatch)
    rng = random.Random(1)

    async def write(partition: int) -> int:
        num_refused = 0
        for first in range(0, 600, 100):
            sizes = [rng.choice([100] * 30 + [40_000, 90_000, 600_000, 1_500_000]) for _ in range(100)]
            values = [b"%d " % number + bytes(size) for number, size in enumerate(sizes, start=first)]
            todo = [Record("t", b"u%d" % rng.randrange(9), value, [], partition) for value in values]
            try:
                await producer.send(todo)
            except NotAcknowledged as error:
                assert error.records == []
                assert [each.record for each in error.refused] == [each for each in todo if len(each.value) > 60_000]
                num_refused += len(error.refused)
        return num_refused

    refused = await asyncio.gather(write(0), write(1))
    await producer.stop()
    for partition in (0, 1):
        written = [int(each.value.split()[0]) for each in broker.log if each.partition == partition]
        assert written == sorted(set(written)) and len(written) == 600 - refused[partition] < 600


async def test_what_is_larger_than_any_record_may_be_is_refused_here_and_the_others_are_sent(monkeypatch) -> None:
    broker = Broker(max_batch_bytes=10_000_000)
    producer = await producer_of(broker, monkeypatch)
    todo = [Record("t", b"k", b"%d " % number + bytes(size)) for number, size in enumerate((10, 1_000_000, 20, 9_000_000, 30))]
    with pytest.raises(NotAcknowledged, match="refused") as caught:
        await producer.send(todo)
    await producer.stop()
    assert ([each.record for each in caught.value.refused], caught.value.records) == ([todo[1], todo[3]], [])
    assert "1000003 bytes are more than the 1000000" in caught.value.refused[0].cause
    assert [each.value[:1] for each in broker.log] == [b"0", b"2", b"4"]
    assert broker.connections == 1


async def test_a_record_is_refused_only_where_it_was_alone(monkeypatch) -> None:
    broker = Broker(max_batch_bytes=20_000)
    producer = await producer_of(broker, monkeypatch)
    todo = records(30, 100)
    todo[4] = Record("t", b"user-4", bytes(50_000))
    with pytest.raises(NotAcknowledged, match="refused: MessageSizeTooLargeError") as caught:
        await producer.send(todo)
    await producer.stop()
    assert ([each.record for each in caught.value.refused], caught.value.records) == ([todo[4]], [])
    assert "MessageSizeTooLarge" in caught.value.refused[0].cause
    assert len(broker.log) == 29


async def test_what_is_acknowledged_before_the_broker_goes_down_is_not_among_the_open_ones(monkeypatch) -> None:
    broker = Broker(fails_at=2)
    producer = await producer_of(broker, monkeypatch)
    todo = [Record("t", b"k", b"%d" % number + bytes(300_000)) for number in range(3)]  # a batch each
    with pytest.raises(NotAcknowledged, match="gone") as caught:
        await producer.send(todo)
    assert [each.value[:1] for each in caught.value.records] == [b"1"]
    assert [each.value[:1] for each in broker.log] == [b"0", b"2"]
    await producer.stop()


async def test_many_senders_at_once_get_through_a_small_limit(monkeypatch) -> None:
    broker = Broker(max_batch_bytes=30_000)
    producer = await producer_of(broker, monkeypatch)
    todo = records(1_000, 500)
    await asyncio.gather(*(producer.send([each]) for each in todo))
    await producer.stop()
    assert Counter(each.value for each in broker.log) == Counter(each.value for each in todo)
