"""The trainer's logs on a real broker."""

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from kafka.errors import KafkaTimeoutError
from tunemesh.events.v1.control_pb2 import ControlRecord, EpochClaim
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta, DeltaHeader, ReplicaStatus

from services.common.events.dead_letters import dead_letter
from services.common.platform.control import ControlState
from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_producer import RenewedProducer
from services.common.ranker.delta_chunks import Reassembler, chunk
from services.trainer.kafka_calls import make_producer
from services.trainer.kafka_logs import KafkaBaseLog, KafkaControlLog, KafkaDeltaLog
from services.trainer.kafka_replicas import KafkaReplicaReports
from services.trainer.kafka_samples import KafkaDeadLetters, KafkaSamples
from services.trainer.neighbours import HistoryLost
from services.trainer.owner import ControlOwner
from tests.limits import seconds

pytestmark = pytest.mark.integration

Topics = Callable[..., str]


@pytest.fixture
def producer(kafka_bootstrap: str) -> Iterator[RenewedProducer]:
    made = make_producer(kafka_bootstrap, "none")
    yield made
    made.close()


def poll_until(samples: KafkaSamples, num_records: int) -> list[tuple[int, int, bytes | None]]:
    found: list[tuple[int, int, bytes | None]] = []
    deadline = time.monotonic() + seconds(10)
    while len(found) < num_records and time.monotonic() < deadline:
        found += [(record.partition, record.offset, record.value) for record in samples.poll(100)]
    return found


def test_samples_are_read_from_the_given_offsets_with_partition_and_headers(
    kafka_bootstrap: str, topics: Topics, producer: RenewedProducer
) -> None:
    topic = topics("samples", partitions=2)
    for number in range(5):
        for partition in (0, 1):
            producer.send(topic, b"%d" % number, headers=[("traceparent", b"t")], partition=partition).get(seconds(10))
    samples = KafkaSamples(kafka_bootstrap, topic, 2)
    try:
        assert samples.ranges() == [(0, 5), (0, 5)]
        samples.seek([2, 4])
        found = poll_until(samples, 4)
        assert sorted(found) == [(0, 2, b"2"), (0, 3, b"3"), (0, 4, b"4"), (1, 4, b"4")]
        samples.seek([4, 4])
        samples.hold([1])
        assert poll_until(samples, 1) == [(0, 4, b"4")]
        assert samples.poll(300) == []
        samples.hold([])
        assert poll_until(samples, 1) == [(1, 4, b"4")]
    finally:
        samples.close()


def test_an_offset_that_the_log_does_not_have_is_an_event_and_no_jump(
    kafka_bootstrap: str, topics: Topics, producer: RenewedProducer
) -> None:
    topic = topics("samples", partitions=1)
    producer.send(topic, b"x", partition=0).get(seconds(10))
    samples = KafkaSamples(kafka_bootstrap, topic, 1)
    try:
        samples.seek([99])
        with pytest.raises(HistoryLost, match=topic):
            for _ in range(50):
                assert samples.poll(100) == []
    finally:
        samples.close()


def test_a_partition_that_is_missing_is_named(kafka_bootstrap: str, topics: Topics) -> None:
    with pytest.raises(Unavailable, match="no partition 1"):
        KafkaSamples(kafka_bootstrap, topics("samples", partitions=1), 2)


def test_two_owners_of_one_control_log_never_claim_the_same_epoch(kafka_bootstrap: str, topics: Topics, producer: RenewedProducer) -> None:
    topic = topics("control")
    logs = [KafkaControlLog(kafka_bootstrap, topic, producer) for _ in range(2)]
    owners = [ControlOwner(log, actor=f"owner{number}", now_ms=lambda: 5) for number, log in enumerate(logs)]

    def claim(state: ControlState) -> ControlRecord:
        return state.epoch_change(EpochClaim(model="ranker", epoch=state.epoch("ranker") + 1), now_ms=5, actor="t")

    try:
        claimed = [owner.write(claim).epoch_claim.epoch for _ in range(3) for owner in owners]
        assert claimed == [1, 2, 3, 4, 5, 6]
        stale = logs[0].position
        owners[1].write(claim)
        assert logs[0].position == stale
        owners[0].sync()
        assert owners[0].state.epoch("ranker") == 7
    finally:
        for log in logs:
            log.close()


def test_records_that_cannot_be_read_are_left_out_and_the_logs_go_on(
    kafka_bootstrap: str, topics: Topics, producer: RenewedProducer
) -> None:
    names = [topics(stem) for stem in ("control", "deltas", "bases", "replicas")]
    reports = KafkaReplicaReports(kafka_bootstrap, names[3])
    producer.send(names[3], ReplicaStatus(replica_id="before").SerializeToString(), key=b"before").get(seconds(10))
    reports.start()
    for value in (b"\xff\xff", None):
        for name in names:
            producer.send(name, value, key=b"k", partition=0).get(seconds(10))
    log = KafkaControlLog(kafka_bootstrap, names[0], producer)
    try:
        owner = ControlOwner(log, actor="t", now_ms=lambda: 1)
        owner.write(lambda state: state.lineage_change("L", now_ms=1, actor="t"))
        producer.send(names[0], b"\xff", key=b"k", partition=0).get(seconds(10))
        owner.write(lambda state: state.epoch_change(EpochClaim(model="ranker", epoch=3), now_ms=1, actor="t"))
        assert (owner.state.lineage_id, owner.state.epoch("ranker")) == ("L", 3)
    finally:
        log.close()
    bases = KafkaBaseLog(kafka_bootstrap, names[2], producer)
    bases.append(BasePointer(model="ranker", base_id="b1", epoch=1))
    newest = bases.newest("ranker")
    assert newest is not None and newest.base_id == "b1"
    deltas = KafkaDeltaLog(kafka_bootstrap, names[1], 0, producer)
    deltas.append(chunk(DeltaHeader(seq=7), b""), "").wait(20_000)
    found = list(deltas.read(0, 3))
    assert found[:2] == [None, None] and found[2] is not None and found[2].header.seq == 7
    heard: list[str] = []
    deadline = time.monotonic() + seconds(30)
    while "after" not in heard:
        # Heard once it follows: what is said before that is said again.
        producer.send(names[3], ReplicaStatus(replica_id="after").SerializeToString(), key=b"after").get(seconds(10))
        heard += [report.replica_id for report in reports.take()]
        assert time.monotonic() < deadline, "no report was heard in 30 s"
        time.sleep(0.05)
    reports.stop()
    assert set(heard) == {"after"}


def test_deltas_are_acknowledged_read_back_and_out_of_range_is_noticed(
    kafka_bootstrap: str, topics: Topics, producer: RenewedProducer
) -> None:
    log = KafkaDeltaLog(kafka_bootstrap, topics("deltas"), 0, producer)
    assert log.range() == (0, 0)
    bodies = [bytes([number]) * 2_000_000 for number in range(3)]
    for number, body in enumerate(bodies):
        pending = log.append(chunk(DeltaHeader(seq=number), body), "00-trace")
        pending.wait(20_000)
        assert pending.next_offset() == 3 * (number + 1)
    assert log.range() == (0, 9)
    reassembler = Reassembler()
    completed = [complete for record in log.read(3, 9) if (complete := reassembler.add(record)) is not None]
    assert [(complete.header.seq, complete.body) for complete in completed] == [(1, bodies[1]), (2, bodies[2])]
    with pytest.raises(HistoryLost):
        list(log.read(50, 60))


def test_an_append_without_a_broker_fails_in_time_and_does_not_block(topics: Topics, kafka_bootstrap: str, fresh_broker: "object") -> None:
    from services.mesh.runner.topics import create_topics

    bootstrap = fresh_broker.bootstrap  # type: ignore[attr-defined]
    create_topics(bootstrap, {"deltas": 1})
    producer = make_producer(bootstrap, "none")
    log = KafkaDeltaLog(bootstrap, "deltas", 0, producer)
    pending = log.append([Delta(header=DeltaHeader(seq=0))], "")
    pending.wait(10_000)
    assert pending.next_offset() == 1
    fresh_broker.kill()  # type: ignore[attr-defined]
    started = time.monotonic()
    pending = log.append([Delta(header=DeltaHeader(seq=1))], "")
    returned = time.monotonic()
    pending.wait(30_000)
    assert returned - started < (time.monotonic() - started) / 2, "the append waited for what became of it"
    with pytest.raises(Unavailable):
        pending.next_offset()
    producer.close(timeout_s=0)


def test_the_newest_base_is_the_last_of_the_highest_epoch_of_the_model(
    kafka_bootstrap: str, topics: Topics, producer: RenewedProducer
) -> None:
    log = KafkaBaseLog(kafka_bootstrap, topics("bases"), producer)
    assert log.newest("ranker") is None
    for model, epoch, base_id in (("ranker", 1, "a"), ("ranker", 2, "b"), ("ranker", 2, "c"), ("other", 9, "d"), ("ranker", 1, "zombie")):
        log.append(BasePointer(model=model, epoch=epoch, base_id=base_id))
    newest = log.newest("ranker")
    assert newest is not None and newest.base_id == "c"


def test_dead_letters_are_there_after_a_flush(kafka_bootstrap: str, topics: Topics, producer: RenewedProducer) -> None:
    topic = topics("dlq")
    letters = KafkaDeadLetters(topic, producer)
    letters.send(dead_letter(topic="samples.v1", partition=1, offset=7, reason="malformed", detail="d", value=b"v"))
    letters.flush()
    consumer = assigned_consumer(kafka_bootstrap, topic, start="beginning", client_id="test")
    (record,) = drain_to_end(consumer)
    consumer.close()
    assert DeadLetter.FromString(record.value).source_offset == 7


class _Refusing:
    """A producer that takes nothing while the broker is down."""

    def __init__(self, producer: RenewedProducer) -> None:
        self.is_down = True
        self._producer = producer

    def send(self, *arguments: Any) -> Any:
        if self.is_down:
            raise KafkaTimeoutError("no metadata")
        return self._producer.send(*arguments)


def test_dead_letters_that_cannot_be_sent_wait_for_the_flush(kafka_bootstrap: str, topics: Topics, producer: RenewedProducer) -> None:
    topic = topics("dlq")
    refusing = _Refusing(producer)
    letters = KafkaDeadLetters(topic, cast("RenewedProducer", refusing))
    for offset in range(3):
        letters.send(dead_letter(topic="samples.v1", partition=1, offset=offset, reason="malformed", detail="d", value=b"v"))
    for _ in range(2):
        with pytest.raises(Unavailable):
            letters.flush()
    refusing.is_down = False
    letters.flush()
    letters.flush()
    consumer = assigned_consumer(kafka_bootstrap, topic, start="beginning", client_id="test")
    found = [DeadLetter.FromString(record.value).source_offset for record in drain_to_end(consumer)]
    consumer.close()
    assert found == [0, 1, 2]
