from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from tunemesh.events.v1.delta_pb2 import ROW_DTYPE_FP32, Delta

from services.common.platform.errors import Unavailable
from services.common.ranker.delta import DeltaBody
from services.common.ranker.delta_chunks import Reassembler
from services.trainer.merge import PartitionPosition, Position
from services.trainer.publish_gate import PublishGateLimits
from services.trainer.publisher import DeltaPublisher, Identity
from services.trainer.trainer_table import Eviction, TrainerTable


class FakePending:
    def __init__(self, log: "FakeDeltaLog", end: int) -> None:
        self.log, self.end = log, end

    def next_offset(self) -> int | None:
        if self.log.broken:
            raise Unavailable("timed out")
        return None if self.log.is_slow else self.end

    def wait(self, timeout_ms: int) -> None:
        pass


class FakeDeltaLog:
    def __init__(self) -> None:
        self.records: list[Delta] = []
        self.is_slow = False
        self.broken = False

    def append(self, chunks: Sequence[Delta], traceparent: str) -> FakePending:
        self.records += chunks
        return FakePending(self, len(self.records))

    def deltas(self) -> list[tuple[Delta, DeltaBody]]:
        reassembler, found = Reassembler(), []
        for record in self.records:
            complete = reassembler.add(record)
            if complete is not None:
                found.append((complete.header, complete.decode()))
        return found


def position(offset: int) -> Position:
    return Position((PartitionPosition(offset, offset, 100 * offset),))


class FakeLearner:
    def __init__(self) -> None:
        self.tables = {"user": TrainerTable("user", 2, eviction=Eviction(steps_to_live=5))}
        self.steps = 0

    def dense_state(self) -> dict[str, np.ndarray]:
        return {"w": np.full(3, self.steps, np.float32)}

    def learn(self, *ids: int, value: float = 1.0) -> None:
        self.steps += 1
        table, unique = self.tables["user"], np.array(sorted(ids), np.int64)
        table.advance(self.steps)
        slots = table.slots_for_update(unique)
        table.rows[slots] = value
        table.mark_touched(unique)


@pytest.fixture
def parts() -> SimpleNamespace:
    log, learner = FakeDeltaLog(), FakeLearner()
    publisher = DeltaPublisher(
        log=log,
        identity=Identity(model="ranker", schema_hash="s", lineage_id="L", epoch=4),
        dtype=ROW_DTYPE_FP32,
        limits=PublishGateLimits(max_row_norm=100.0, max_dense_norm=1e6),
        base_id="base-1",
        next_offset=0,
        published_position=position(0),
    )
    return SimpleNamespace(log=log, learner=learner, publisher=publisher)


def publish(parts: SimpleNamespace, offset: int, *, acknowledged: bool = True) -> None:
    parts.publisher.publish(parts.learner, position(offset), now_ms=offset, traceparent="")
    if acknowledged:
        assert parts.publisher.poll(parts.learner)


def test_deltas_form_a_chain_with_what_changed_and_what_it_contains(parts: SimpleNamespace) -> None:
    parts.learner.learn(7, 8)
    publish(parts, 3)
    parts.learner.learn(8, value=2.0)
    publish(parts, 5)
    (first, first_body), (second, second_body) = parts.log.deltas()
    assert (first.seq, first.prev_seq, second.seq, second.prev_seq) == (0, -1, 1, 0)
    assert (second.epoch, second.base_id, second.lineage_id, second.model, second.schema_hash) == (4, "base-1", "L", "ranker", "s")
    assert (list(second.source_offsets), second.watermark_ms) == ([5], 500)
    assert first_body.tables["user"].ids.tolist() == [7, 8]
    assert second_body.tables["user"].ids.tolist() == [8]
    assert second_body.tables["user"].rows.tolist() == [[2.0, 2.0]]
    assert second_body.dense is not None and second_body.dense["w"].tolist() == [2.0] * 3
    assert parts.publisher.next_offset == 2


def test_nothing_new_makes_a_heartbeat_that_moves_the_watermark(parts: SimpleNamespace) -> None:
    parts.learner.learn(7)
    publish(parts, 3)
    publish(parts, 4)
    header, body = parts.log.deltas()[1]
    assert header.heartbeat and header.watermark_ms == 400
    assert not body.tables and body.dense is None


def test_touched_ids_are_kept_until_the_broker_acknowledges(parts: SimpleNamespace) -> None:
    parts.log.is_slow = True
    parts.learner.learn(7)
    publish(parts, 3, acknowledged=False)
    assert not parts.publisher.poll(parts.learner)
    assert parts.learner.tables["user"].take_touched().ids.tolist() == [7]
    parts.log.is_slow = False
    assert parts.publisher.poll(parts.learner)
    assert parts.learner.tables["user"].take_touched().ids.size == 0


def test_a_change_while_a_delta_is_in_flight_belongs_to_the_next(parts: SimpleNamespace) -> None:
    parts.learner.learn(7)
    publish(parts, 3, acknowledged=False)
    parts.learner.learn(7, value=5.0)
    assert parts.publisher.poll(parts.learner)
    publish(parts, 4)
    assert parts.log.deltas()[1][1].tables["user"].rows.tolist() == [[5.0, 5.0]]


def test_only_one_delta_is_in_flight(parts: SimpleNamespace) -> None:
    publish(parts, 3, acknowledged=False)
    with pytest.raises(ValueError, match="in flight"):
        publish(parts, 4)


def test_a_delta_that_failed_is_sent_again_byte_for_byte(parts: SimpleNamespace) -> None:
    parts.learner.learn(7)
    parts.log.broken = True
    publish(parts, 3, acknowledged=False)
    assert not parts.publisher.poll(parts.learner)
    parts.learner.learn(7, value=9.0)
    parts.log.broken = False
    assert parts.publisher.poll(parts.learner)
    assert parts.log.records[0] == parts.log.records[1]
    publish(parts, 4)
    assert [header.seq for header, _ in parts.log.deltas()] == [0, 0, 1]
    assert parts.log.deltas()[-1][1].tables["user"].rows.tolist() == [[9.0, 9.0]]


def test_flush_says_when_the_broker_is_down(parts: SimpleNamespace) -> None:
    parts.log.is_slow = True
    publish(parts, 3, acknowledged=False)
    with pytest.raises(Unavailable, match=r"did not acknowledge delta 4\.0"):
        parts.publisher.flush(parts.learner, 1)


def test_an_eviction_is_published_as_a_tombstone(parts: SimpleNamespace) -> None:
    parts.learner.learn(7)
    publish(parts, 3)
    parts.learner.steps = 50
    assert parts.learner.tables["user"].evict(50).tolist() == [7]
    publish(parts, 4)
    body = parts.log.deltas()[1][1].tables["user"]
    assert (body.ids.tolist(), body.tombstones.tolist()) == ([], [7])


def test_what_an_older_epoch_published_is_published_again_as_rows_or_tombstones(parts: SimpleNamespace) -> None:
    parts.learner.learn(7, 8)
    publish(parts, 3)
    parts.publisher.republish({"user": np.array([8, 99], np.int64)})
    parts.log.is_slow = True
    publish(parts, 3, acknowledged=False)
    parts.log.is_slow = False
    parts.publisher.poll(parts.learner)
    body = parts.log.deltas()[1][1].tables["user"]
    assert (body.ids.tolist(), body.tombstones.tolist()) == ([8], [99])
    publish(parts, 4)
    assert parts.log.deltas()[2][0].heartbeat


def test_the_gate_holds_rows_and_watermark_back_until_they_are_sound(parts: SimpleNamespace) -> None:
    parts.learner.learn(7)
    publish(parts, 3)
    parts.learner.learn(7, value=float("nan"))
    publish(parts, 4)
    header, body = parts.log.deltas()[1]
    assert "NaN" in parts.publisher.refusal
    assert header.heartbeat and not body.tables
    assert (header.watermark_ms, list(header.source_offsets)) == (300, [3])

    parts.learner.learn(7, value=1.5)
    publish(parts, 5)
    header, body = parts.log.deltas()[2]
    assert parts.publisher.refusal == ""
    assert header.watermark_ms == 500
    assert body.tables["user"].rows.tolist() == [[1.5, 1.5]]
    assert body.dense is not None


def test_the_gate_keeps_what_must_be_published_again(parts: SimpleNamespace) -> None:
    parts.learner.learn(7, value=float("nan"))
    parts.publisher.republish({"user": np.array([99], np.int64)})
    publish(parts, 3)
    assert parts.publisher.refusal
    parts.learner.learn(7)
    publish(parts, 4)
    assert parts.log.deltas()[1][1].tables["user"].tombstones.tolist() == [99]


def test_a_header_counts_the_samples_and_the_gradient_since_the_delta_before(parts: SimpleNamespace) -> None:
    for norm, num_samples in ((3.0, 10), (4.0, 7)):
        parts.learner.learn(7)
        parts.publisher.note_step(num_samples=num_samples, gradient_norm=norm)
    publish(parts, 3)
    publish(parts, 4)
    parts.learner.learn(8)
    parts.publisher.note_step(num_samples=5, gradient_norm=0.0)
    publish(parts, 5)
    counted = [(header.samples_trained, header.gradient_norm) for header, _ in parts.log.deltas()]
    assert counted == [(17, 5.0), (0, 0.0), (5, 0.0)]


def test_what_a_refused_delta_would_have_counted_waits_for_the_next(parts: SimpleNamespace) -> None:
    parts.learner.learn(7, value=float("nan"))
    parts.publisher.note_step(num_samples=10, gradient_norm=3.0)
    publish(parts, 3)
    parts.learner.learn(7)
    parts.publisher.note_step(num_samples=1, gradient_norm=4.0)
    publish(parts, 4)
    counted = [(header.samples_trained, header.gradient_norm) for header, _ in parts.log.deltas()]
    assert counted == [(0, 0.0), (11, 5.0)]
