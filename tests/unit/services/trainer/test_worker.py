import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tunemesh.events.v1.delta_pb2 import BasePointer
from tunemesh.samples.v1.sample_pb2 import SampleRecord, Tick

from services.common.platform import telemetry
from services.common.platform.errors import Conflict, CorruptArtifact, Unavailable
from services.trainer import base_publisher
from services.trainer.base_schedule import BasePace
from services.trainer.neighbours import Fenced
from services.trainer.publish_gate import PublishGateLimits
from services.trainer.restore import RestoreRequest
from services.trainer.worker import RankerWorker, WorkerConfig
from tests.limits import seconds
from tests.trainer_fakes.broker import FakeBroker, FakeRecord, bootstrapped_now, broker_with
from tests.trainer_fakes.life import Life, start
from tests.trainer_fakes.logs import FakeBaseLog, FakeDeadLetters, FakeReports, FakeSamples
from tests.trainer_fakes.sample_logs import SPEC, group, sample_log

NO_BASES = BasePace(interval_s=1e9)
QUICK = WorkerConfig(samples_topic="samples.v1", publish_interval_ms=20, publish_gap_ms=5, checkpoint_interval_ms=30, base_pace=NO_BASES)
GO_BACK = RestoreRequest(not_after=10**15, skip_later_samples=False, actor="ann")
SELDOM = replace(QUICK, checkpoint_interval_ms=10**9)
# Deltas come when there is something to say, or not at all.
ON_NEWS = replace(SELDOM, publish_interval_ms=10**9)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds(20)
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.005)


class Running:
    def __init__(self, life: Life, worker: RankerWorker) -> None:
        self.life, self.worker = life, worker
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def join(self) -> None:
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def running(
    broker: FakeBroker, config: WorkerConfig = QUICK, /, reports: FakeReports | None = None, **start_arguments: Any
) -> Iterator[Running]:
    life = start(broker, **start_arguments)
    worker = RankerWorker(
        life.begin_epoch, SPEC, life.samples, FakeDeadLetters(broker), reports or FakeReports(), config, telemetry.disabled("trainer")
    )
    run = Running(life, worker)
    yield run
    worker.stop()
    run.join()


def ends(broker: FakeBroker) -> tuple[int, ...]:
    return tuple(len(log) for log in broker.samples)


def test_it_learns_publishes_and_checkpoints_until_it_is_stopped() -> None:
    broker = broker_with(sample_log(1))
    with running(broker) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
        until(lambda: broker.replica.watermark_ms == run.worker.status.watermark_ms > 0)
        until(lambda: run.worker.status.last_checkpoint != "")
        status = run.worker.status
        assert (status.epoch, status.paused, status.publishing_refused) == (1, False, "")
        assert status.counters.samples_trained > 100
        assert status.prequential["like"].auc == 0.75
        assert status.table_rows["user"] > 0
    assert run.error is None
    assert broker.replica.equals(run.life.learner.state_arrays())
    newest = max(broker.disk.checkpoints)
    assert broker.disk.checkpoints[newest][0].cut.position.offsets == list(ends(broker))


def test_a_delta_follows_when_all_that_came_is_learned_and_then_nothing_until_there_is_news() -> None:
    broker = broker_with(sample_log(1))
    with running(broker, ON_NEWS) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
        until(lambda: broker.replica.equals(run.life.learner.state_arrays()))
        until(lambda: run.life.epoch.publisher.is_idle)
        num_deltas = len(broker.deltas)
        time.sleep(0.2)
        assert len(broker.deltas) == num_deltas
    assert run.error is None


def test_replicas_hear_once_that_they_have_what_they_were_sent_before() -> None:
    """The tick that ends a batch says less than the next one: its watermark is that of a moment before the newest feedback."""
    said = group(1, "u", ["1"], positive=True)
    said.samples[0].accepted_at_ms = 1_000
    records = [SampleRecord(group=said), *(SampleRecord(tick=Tick(tick=tick, watermark_ms=tick)) for tick in (900, 1_000, 1_100, 1_200))]
    broker = broker_with([records[:2]])
    with running(broker, ON_NEWS) as run:
        until(lambda: broker.replica.watermark_ms == 900)
        until(lambda: run.life.epoch.publisher.is_idle)
        num_deltas = len(broker.deltas)
        for offset in (2, 3, 4):
            broker.samples[0].append(FakeRecord(0, offset, records[offset].SerializeToString()))
            until(lambda end=offset + 1: run.worker.status.source_offsets == (end,))
            until(lambda: broker.replica.watermark_ms >= 1_000 and run.life.epoch.publisher.is_idle)
        time.sleep(0.1)
        assert broker.deltas[-1].header.heartbeat and len(broker.deltas) == num_deltas + 1
    assert run.error is None


def test_while_more_waits_to_be_learned_deltas_come_by_the_interval() -> None:
    broker = broker_with(sample_log(1, num_ticks=60, groups_per_tick=8))
    life = start(broker)
    learn, seen = life.learner.learn, []

    def slowly(groups: Any) -> Any:
        seen.append(len(broker.deltas))
        time.sleep(0.001)
        return learn(groups)

    life.learner.learn = slowly  # type: ignore[method-assign]
    worker = RankerWorker(
        life.begin_epoch, SPEC, life.samples, FakeDeadLetters(broker), FakeReports(), ON_NEWS, telemetry.disabled("trainer")
    )
    life.samples.poll = lambda timeout_ms: whole_log(life.samples)  # type: ignore[method-assign]
    run = Running(life, worker)
    until(lambda: run.worker.status.source_offsets == ends(broker))
    worker.stop()
    run.join()
    assert len(seen) > 100 and seen[-1] == seen[0], "deltas came between micro-batches"


def whole_log(samples: FakeSamples) -> list[FakeRecord]:
    polled = [record for log, at in zip(samples.broker.samples, samples.positions, strict=True) for record in log[at:]]
    samples.positions = [len(log) for log in samples.broker.samples]
    return polled


def test_a_stop_leaves_nothing_to_learn_again() -> None:
    broker = broker_with(sample_log(1))
    with running(broker, SELDOM) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
    again = start(broker)
    assert again.learner.state_hash() == run.life.learner.state_hash()
    assert again.epoch.merge.position.offsets == list(ends(broker))


def test_records_that_cannot_be_used_are_set_aside_and_learning_goes_on() -> None:
    logs = sample_log(1)
    broker = broker_with(logs)
    log = broker.samples[0]
    bad = group(10_000, "u", ["1"], positive=True)
    bad.schema_hash = "other"
    log += [
        FakeRecord(0, len(log), b"\xff\xff", b"key", [("traceparent", b"00-t")]),
        FakeRecord(0, len(log) + 1, SampleRecord(group=bad).SerializeToString()),
        FakeRecord(0, len(log) + 2, SampleRecord(tick=Tick(tick=10**6, watermark_ms=1)).SerializeToString()),
    ]
    broker.samples[1].append(FakeRecord(1, len(broker.samples[1]), SampleRecord(tick=Tick(tick=10**6, watermark_ms=1)).SerializeToString()))
    with running(broker) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
    first, second = broker.dead_letters
    assert (first.source_topic, first.source_partition, first.source_offset) == ("samples.v1", 0, len(logs[0]))
    assert (first.reason, first.value, first.key, first.headers["traceparent"]) == ("malformed", b"\xff\xff", b"key", b"00-t")
    assert second.reason == "schema_mismatch"
    assert run.worker.status.counters.unusable_skipped == 2


def test_a_pause_stops_learning_but_not_heartbeats() -> None:
    broker = broker_with([[], []])
    with running(broker) as run:
        run.worker.submit(run.worker.pause).result(5)
        for partition, log in enumerate(sample_log(1)):
            broker.samples[partition] += [FakeRecord(partition, offset, record.SerializeToString()) for offset, record in enumerate(log)]
        num_deltas = len(broker.deltas)
        until(lambda: len(broker.deltas) > num_deltas + 2)
        assert run.worker.status.paused
        assert run.worker.status.source_offsets == (0, 0)
        assert broker.deltas[-1].header.heartbeat
        run.worker.submit(run.worker.resume).result(5)
        until(lambda: run.worker.status.source_offsets == ends(broker))


def test_a_checkpoint_on_demand_is_durable_and_names_its_state() -> None:
    broker = broker_with(sample_log(1))
    with running(broker, SELDOM) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
        written = run.worker.submit(run.worker.write_checkpoint).result(5)
    assert written.url in broker.disk.checkpoints
    assert written.source_offsets == ends(broker)
    assert written.state_hash == run.life.learner.state_hash()


def test_a_base_on_demand_is_announced() -> None:
    broker = broker_with(sample_log(1))
    with running(broker) as run:
        base_id, uri = run.worker.submit(run.worker.publish_base).result(5)
    assert (broker.bases[-1].base_id, broker.bases[-1].uri) == (base_id, uri)
    assert len(broker.bases) == 2


def test_bases_come_at_the_interval_while_something_is_learned_and_each_equals_a_delta() -> None:
    broker = broker_with(sample_log(1))
    config = replace(QUICK, base_pace=BasePace(interval_s=0.02))
    with running(broker, config) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
        until(lambda: len(broker.bases) >= 2 and broker.bases[-1].seq >= 0)
        until(lambda: run.worker.status.base_id == broker.bases[-1].base_id)
        until(lambda: broker.disk.checkpoints[max(broker.disk.checkpoints)][0].cut.base_id == broker.bases[-1].base_id)
        num_bases = len(broker.bases)
        seq = broker.replica.seq
        until(lambda: broker.replica.seq > seq + 12)
        # One may have been on its way when the last sample was learned, and another one has what that lacks.
        assert len(broker.bases) <= num_bases + 2, "nothing is learned any more"
    assert run.error is None
    assert bootstrapped_now(broker).content_hash() == broker.replica.content_hash()


def test_a_base_that_cannot_be_announced_is_made_again_and_learning_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, failures = broker_with(sample_log(1)), []
    monkeypatch.setattr(base_publisher, "_RETRY_S", 0.01)
    append = FakeBaseLog.append

    def refuse(log: FakeBaseLog, pointer: BasePointer) -> None:
        if pointer.seq >= 0 and len(failures) < 2:
            failures.append(pointer.base_id)
            raise Unavailable("no broker")
        append(log, pointer)

    monkeypatch.setattr(FakeBaseLog, "append", refuse)
    with running(broker, replace(QUICK, base_pace=BasePace(interval_s=0.02))) as run:
        until(lambda: len(failures) == 2 and len(broker.bases) >= 2)
        until(lambda: run.worker.status.source_offsets == ends(broker))
    assert run.error is None
    assert bootstrapped_now(broker).content_hash() == broker.replica.content_hash()


def test_a_refusal_of_the_gate_pauses_learning_and_keeps_replicas_as_they_are() -> None:
    broker = broker_with(sample_log(1))
    with running(broker) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
        until(lambda: broker.deltas[-1].header.heartbeat)
        watermark_ms = broker.replica.watermark_ms

        def poison() -> None:
            run.life.learner.dense[0] = np.nan
            run.life.learner.steps += 1

        run.worker.submit(poison).result(5)
        until(lambda: run.worker.status.paused)
        assert "NaN" in run.worker.status.publishing_refused
        with pytest.raises(Conflict, match="NaN"):
            run.worker.submit(run.worker.write_checkpoint).result(5)
        with pytest.raises(CorruptArtifact, match="the publish gate refuses base"):
            run.worker.submit(run.worker.publish_base).result(5)
        num_checkpoints = len(broker.disk.checkpoints)
        until(lambda: broker.replica.seq > 5)
        assert broker.replica.watermark_ms == watermark_ms
        assert np.isfinite(broker.replica.dense["w"]).all()
    assert run.error is None
    assert len(broker.disk.checkpoints) == num_checkpoints


def test_a_restore_ends_the_pause_that_the_gate_had_made() -> None:
    broker = broker_with(sample_log(1))
    with running(broker, SELDOM) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
        run.worker.submit(run.worker.write_checkpoint).result(5)
        sound = run.life.learner.state_hash()

        def poison() -> None:
            run.life.learner.dense[0] = np.nan
            run.life.learner.steps += 1

        run.worker.submit(poison).result(5)
        until(lambda: run.worker.status.paused)
        restored = run.worker.submit(lambda: run.worker.restore(GO_BACK)).result(20)
        assert restored.epoch == run.worker.status.epoch == 2
        assert not run.worker.status.paused and not run.worker.status.publishing_refused
        until(lambda: broker.replica.epoch == 2)
        assert run.life.learner.state_hash() == sound
        assert broker.replica.equals(run.life.learner.state_arrays())
    assert run.error is None


def test_a_restore_leaves_an_operators_pause_as_it_is() -> None:
    broker = broker_with(sample_log(1))
    with running(broker, SELDOM) as run:
        run.worker.submit(run.worker.pause).result(5)
        run.worker.submit(lambda: run.worker.restore(GO_BACK)).result(20)
        assert run.worker.status.paused


def test_a_decided_restore_whose_epoch_cannot_begin_ends_the_worker_and_the_next_start_completes_it() -> None:
    broker = broker_with(sample_log(1))
    with running(broker, SELDOM) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))

        def away() -> None:
            raise Unavailable("no broker")

        run.life.open = away  # type: ignore[assignment]
        with pytest.raises(Unavailable, match="its epoch could not begin; the next start of the trainer completes it: no broker"):
            run.worker.submit(lambda: run.worker.restore(GO_BACK)).result(20)
        run.join()
        assert isinstance(run.error, Unavailable)
    newest = broker.disk.checkpoints[max(broker.disk.checkpoints)][0]
    assert newest.cut.restored is not None and newest.cut.restored.actor == "ann"
    again = start(broker)
    assert again.epoch.number == 2
    assert broker.replica.equals(again.learner.state_arrays())


def test_a_trainer_that_was_superseded_ends_and_writes_nothing_more() -> None:
    broker = broker_with(sample_log(1))
    with running(broker) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
        successor = start(broker)
        run.join()
        assert isinstance(run.error, Fenced)
        written = len(broker.deltas), len(broker.disk.checkpoints)
        time.sleep(0.1)
        assert (len(broker.deltas), len(broker.disk.checkpoints)) == written
        assert successor.epoch.number == 2
        with pytest.raises(Unavailable, match="stopping"):
            run.worker.submit(run.worker.pause)


def test_an_error_of_the_learner_ends_the_worker() -> None:
    broker = broker_with(sample_log(1))
    life = start(broker)
    life.learner.learn = lambda groups: 1 / 0  # type: ignore[method-assign,assignment]
    worker = RankerWorker(
        life.begin_epoch, SPEC, life.samples, FakeDeadLetters(broker), FakeReports(), QUICK, telemetry.disabled("trainer")
    )
    run = Running(life, worker)
    run.join()
    assert isinstance(run.error, ZeroDivisionError)


def test_a_partition_far_ahead_of_the_others_is_held_back() -> None:
    logs = sample_log(1)
    far = SampleRecord(group=group(1, "u", ["1"], positive=True)).SerializeToString()
    ahead = [FakeRecord(0, offset, far) for offset in range(4_100)]
    broker = broker_with(logs)
    broker.samples[0] = ahead
    broker.samples[1] = []
    # Without a tick on partition 0 only whole batches of it are learned, and partition 1 waits.
    broker.samples[0][0] = FakeRecord(0, 0, SampleRecord(tick=Tick(tick=5, watermark_ms=5)).SerializeToString())
    with running(broker, SELDOM) as run:
        until(lambda: run.life.samples.held == {0})
        assert run.worker.status.source_offsets == (1, 0)


def test_what_was_set_aside_is_written_before_the_checkpoint_of_a_base_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, flushed_at = broker_with(sample_log(1)), []
    monkeypatch.setattr(FakeDeadLetters, "flush", lambda _self: flushed_at.append(len(broker.disk.checkpoints)))
    with running(broker, SELDOM) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
        before, num_checkpoints = len(flushed_at), len(broker.disk.checkpoints)
        run.worker.submit(run.worker.publish_base).result(5)
        assert flushed_at[before:] == [num_checkpoints]


def test_no_checkpoint_holds_what_the_gate_would_refuse_though_no_delta_has_met_it_yet(caplog: pytest.LogCaptureFixture) -> None:
    broker = broker_with(sample_log(1))
    silent = replace(QUICK, publish_interval_ms=10**9, publish_gap_ms=10**9)
    with running(broker, silent, config={"limits": PublishGateLimits(max_row_norm=1e6, max_dense_norm=1e-3)}) as run:
        until(lambda: run.worker.status.source_offsets == ends(broker))
        until(lambda: "the publish gate refuses it" in caplog.text)
        with pytest.raises(Conflict, match="has norm"):
            run.worker.submit(run.worker.write_checkpoint).result(5)
    assert all(np.linalg.norm(one.arrays["dense/w"]) <= 1e-3 for one, _ in broker.disk.checkpoints.values())
