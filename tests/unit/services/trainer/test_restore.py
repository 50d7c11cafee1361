"""Going back: what the next epoch begins with, what replicas end with, and that a crash on the way changes neither."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.common.platform.errors import Conflict, NotFound, Unavailable
from services.trainer.checkpoints import Retention, Version
from services.trainer.plan import PassedOver
from services.trainer.restore import Decision, RestoreRequest, decide
from services.trainer.samples import parse_record
from tests.trainer_fakes.broker import FakeBroker, bootstrapped_now, broker_with
from tests.trainer_fakes.faults import Crash, Faults
from tests.trainer_fakes.life import Life, start
from tests.trainer_fakes.sample_logs import SPEC, sample_log


@dataclass
class Clock:
    """Ticks at every look: no two checkpoints are of one moment."""

    time_ms: int = 1_000

    def __call__(self) -> int:
        self.time_ms += 1
        return self.time_ms


@dataclass
class Mesh:
    """A trainer, its broker and its clock; `hashes` and `times` of the checkpoints that `learn` leaves behind."""

    broker: FakeBroker
    clock: Clock
    life: Life
    hashes: list[str] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def learn(self, num_batches: int = 10**9) -> None:
        """Learn, publish after each batch, and write a checkpoint at the end."""
        epoch = self.life.epoch
        for _ in range(num_batches):
            batch = epoch.merge.next_batch()
            while batch is None and self.read_some():
                batch = epoch.merge.next_batch()
            if batch is None:
                break
            epoch.learn(batch)
            self.publish()
        self.publish()
        epoch.stores.checkpoints.write(epoch.cut(), now_ms=self.clock())
        self.hashes.append(self.life.learner.state_hash())
        self.times.append(self.clock())

    def read_some(self) -> bool:
        life, before = self.life, list(self.life.samples.positions)
        for record in life.samples.poll(0):
            life.epoch.merge.push(record.partition, parse_record(SPEC, record.offset, record.value, record.headers))
        ends = [end for _, end in life.samples.ranges()]
        return life.samples.positions != before or before != ends

    def publish(self) -> None:
        epoch = self.life.epoch
        epoch.publisher.flush(epoch.learner, 1_000)
        epoch.publisher.publish(epoch.learner, epoch.merge.position, now_ms=self.clock(), traceparent="")
        epoch.publisher.flush(epoch.learner, 1_000)

    def decide(self, not_after: int | Version, *, skip: bool) -> Decision:
        request = RestoreRequest(not_after=not_after, skip_later_samples=skip, actor="ann")
        return decide(self.life.epoch, self.life.samples, SPEC, request)

    def restore(self, not_after: int | Version, *, skip: bool) -> Decision:
        decision = self.decide(not_after, skip=skip)
        self.life.epoch.stores.checkpoints.write(decision.checkpoint, now_ms=self.clock())
        self.life.epoch = self.life.open()
        return decision


def mesh(seed: int = 1, **arguments: object) -> Mesh:
    clock, broker = Clock(), broker_with(sample_log(seed))
    return Mesh(broker, clock, start(broker, now_ms=clock, **arguments))  # type: ignore[arg-type]


def uninterrupted_hash(seed: int = 1) -> str:
    other = mesh(seed)
    other.learn()
    return other.hashes[-1]


@pytest.mark.parametrize("skip", [False, True])
def test_replicas_go_back_to_what_the_checkpoint_holds_rows_created_since_are_taken_back(skip: bool) -> None:
    one = mesh()
    one.learn(12)
    one.learn(25)
    then, now = one.times
    assert not one.broker.replica.equals(old_arrays(one, then))
    one.restore(then, skip=skip)
    assert one.life.learner.state_hash() == one.hashes[0] != one.hashes[1]
    assert one.life.epoch.number == 2
    assert one.broker.replica.epoch == 2
    assert one.broker.replica.equals(old_arrays(one, then))
    assert bootstrapped_now(one.broker).equals(old_arrays(one, then))
    assert len(one.broker.bases) == 1, "deltas lead back: nobody loads a base for it"
    assert now > then


def old_arrays(one: Mesh, time_ms: int) -> dict[str, np.ndarray]:
    lineage_id = one.life.epoch.lineage_id
    return dict(one.life.epoch.stores.checkpoints.at_or_before(time_ms, lineage_id=lineage_id).checkpoint.arrays)


@pytest.mark.parametrize("seed", range(4))
def test_a_retrain_ends_as_if_nothing_had_happened(seed: int) -> None:
    one = mesh(seed)
    for _ in range(3):
        one.learn(8)
    one.life.learner.dense[:] = 9.0
    one.life.learner.tables["user"].slots_for_update(np.array([-5], np.int64))
    one.publish()
    assert -5 in one.broker.replica.rows["user"]
    decision = one.restore(one.times[0], skip=False)
    assert decision.skipped == (0, 0)
    assert -5 not in one.broker.replica.rows["user"]
    one.learn()
    assert one.hashes[-1] == uninterrupted_hash(seed)
    assert one.broker.replica.equals(one.life.learner.state_arrays())
    assert bootstrapped_now(one.broker).equals(one.life.learner.state_arrays())


def test_a_rollback_never_learns_the_samples_since_even_when_a_joiner_repeats_them() -> None:
    one = mesh()
    one.learn(10)
    restored_hash = one.hashes[0]
    before = one.life.epoch.merge.position.offsets
    one.learn(10)
    decision = one.restore(one.times[0], skip=True)
    ends = [len(log) for log in one.broker.samples]
    assert one.life.epoch.merge.position.offsets == ends, "what had not been learned yet is passed over as well"
    assert decision.skipped == tuple(end - offset for end, offset in zip(ends, before, strict=True))
    for log in one.broker.samples:
        log += [record_at(record, len(log) + number) for number, record in enumerate(log[-40:])]
    one.learn()
    assert one.hashes[-1] == restored_hash
    assert one.life.epoch.counters.duplicates_skipped > 0


def record_at(record: object, offset: int) -> object:
    from dataclasses import replace

    return replace(record, offset=offset)  # type: ignore[type-var]


def test_after_a_rollback_new_samples_are_learned() -> None:
    one = mesh()
    one.learn(10)
    one.learn(10)
    one.restore(one.times[0], skip=True)
    num_trained = one.life.epoch.counters.samples_trained
    for log, more in zip(one.broker.samples, broker_with(sample_log(99)).samples, strict=True):
        log += [record_at(record, len(log) + number) for number, record in enumerate(more)]
    one.learn()
    assert one.life.epoch.counters.samples_trained > num_trained
    assert one.hashes[-1] != one.hashes[0]
    assert one.broker.replica.equals(one.life.learner.state_arrays())


def test_control_v1_says_who_went_back_where_and_what_is_passed_over() -> None:
    one = mesh()
    one.learn(10)
    one.learn(10)
    decision = one.restore(one.times[0], skip=True)
    record = one.broker.control[-1]
    assert (record.subject, record.actor) == ("epoch/ranker", "ann")
    assert record.epoch_claim.continues_from == decision.target.checkpoint.cut.name
    assert tuple(record.epoch_claim.skipped) == decision.skipped
    assert list(record.epoch_claim.source_offsets) == [len(log) for log in one.broker.samples]
    one.life = start(one.broker, now_ms=one.clock)
    ordinary = one.broker.control[-1]
    assert (ordinary.actor, list(ordinary.epoch_claim.skipped)) == ("ann", list(decision.skipped)), "no newer checkpoint yet"
    one.learn()
    start(one.broker, now_ms=one.clock)
    assert (one.broker.control[-1].actor, list(one.broker.control[-1].epoch_claim.skipped)) == ("test", [])


def test_what_rollbacks_left_out_is_known_as_long_as_the_weights_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one = mesh()
    one.learn(10)
    before = one.life.epoch.merge.position.offsets
    one.learn(10)
    one.restore(one.times[0], skip=True)
    ends = [len(log) for log in one.broker.samples]
    first = tuple(PassedOver(number, start, end) for number, (start, end) in enumerate(zip(before, ends, strict=True)))
    assert one.life.epoch.passed_over == first
    for log, more in zip(one.broker.samples, broker_with(sample_log(99)).samples, strict=True):
        log += [record_at(record, len(log) + number) for number, record in enumerate(more)]
    one.learn(5)
    middle = one.life.epoch.merge.position.offsets
    one.learn()
    one.life = start(one.broker, now_ms=one.clock)
    assert one.life.epoch.passed_over == first, "a restart remembers it"
    one.restore(one.times[2], skip=True)
    ends = [len(log) for log in one.broker.samples]
    second = tuple(PassedOver(number, start, end) for number, (start, end) in enumerate(zip(middle, ends, strict=True)) if start < end)
    assert second and one.life.epoch.passed_over == (*first, *second), "both"
    monkeypatch.setattr("services.trainer.restore._MOST_PASSED_OVER", len(second))
    one.restore(one.times[2], skip=True)
    assert one.life.epoch.passed_over == second, "the oldest are forgotten"
    one.restore(one.times[1], skip=False)
    assert one.life.epoch.passed_over == (), "they are learned after all"


def test_what_was_left_out_of_a_partition_that_was_made_anew_is_forgotten() -> None:
    one = mesh()
    one.learn(10)
    one.learn(10)
    one.restore(one.times[0], skip=True)
    one.learn()
    [first, second] = one.life.epoch.passed_over
    del one.broker.samples[0][first.first + 1 :]
    adopted = start(one.broker, now_ms=one.clock, config={"on_lineage_change": "adopt"})
    assert adopted.epoch.merge.position.offsets == [0, second.end]
    assert adopted.epoch.passed_over == (second,), "other samples have those offsets now"


def test_a_restart_after_a_restore_does_not_come_back_to_what_was_rolled_back() -> None:
    one = mesh()
    one.learn(10)
    one.learn(10)
    one.restore(one.times[0], skip=True)
    restored = one.life.learner.state_hash()
    assert start(one.broker, now_ms=one.clock).learner.state_hash() == restored


def test_a_restore_can_be_taken_back() -> None:
    one = mesh()
    one.learn(10)
    one.learn(10)
    one.restore(one.times[0], skip=True)
    one.restore(one.times[1], skip=False)
    assert one.life.learner.state_hash() == one.hashes[1]
    one.learn()
    assert one.hashes[-1] == uninterrupted_hash()
    assert one.broker.replica.equals(one.life.learner.state_arrays())


@pytest.mark.parametrize("skip", [False, True])
def test_a_crash_at_each_single_write_of_a_restore_is_completed_or_undone_by_the_next_start(skip: bool) -> None:
    def prepared(faults: Faults) -> Mesh:
        one = mesh(3, faults=faults)
        one.learn(8)
        one.learn(8)
        return one

    probe = Faults()
    one = prepared(probe)
    before = probe.num_operations
    one.restore(one.times[0], skip=skip)
    expected = one.life.learner.state_hash()
    assert probe.num_operations - before >= 4, "a checkpoint, a claim, a fence, what is published again"
    for number in range(1, probe.num_operations - before + 1):
        for after in (False, True):
            faults = Faults()
            one = prepared(faults)
            faults.countdown, faults.after = number, after
            with pytest.raises(Crash):
                one.restore(one.times[0], skip=skip)
            one.life = start(one.broker, now_ms=one.clock)
            was_decided = (number, after) != (1, False)
            assert one.life.learner.state_hash() == (expected if was_decided else one.hashes[1]), (number, after)
            assert one.broker.replica.equals(one.life.learner.state_arrays()), (number, after)
            assert bootstrapped_now(one.broker).equals(one.life.learner.state_arrays()), (number, after)


def test_deltas_that_retention_removed_make_replicas_load_a_base() -> None:
    one = mesh()
    one.learn(10)
    one.learn(10)
    one.broker.first_delta_offset = len(one.broker.deltas)
    one.restore(one.times[0], skip=True)
    assert one.broker.bases[-1].epoch == 2
    assert one.broker.replica.equals(one.life.learner.state_arrays())
    assert bootstrapped_now(one.broker).equals(one.life.learner.state_arrays())


def test_when_nothing_is_that_old_the_answer_says_what_is_kept_and_nothing_changes() -> None:
    one = mesh()
    one.learn(10)
    with pytest.raises(NotFound, match=r"no checkpoint was written at or before .*\(5\); the 3 that are kept were written from"):
        one.decide(5, skip=False)
    assert one.life.epoch.number == 1


def test_samples_that_are_gone_cannot_be_learned_again_but_can_be_skipped() -> None:
    one = mesh()
    one.learn(10)
    one.learn(10)
    position = one.life.epoch.merge.position.offsets
    one.broker.samples[0] = [record for record in one.broker.samples[0] if record.offset >= position[0]]
    with pytest.raises(Conflict, match=r"samples\.v1\[0\] holds offsets .* can be skipped"):
        one.decide(one.times[0], skip=False)
    one.restore(one.times[0], skip=True)
    assert one.life.learner.state_hash() == one.hashes[0]


def test_a_broker_that_gives_nothing_leaves_the_epoch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    one = mesh()
    one.learn(10)
    one.read_some()
    monkeypatch.setattr(one.life.samples, "poll", lambda timeout_ms: [])
    with pytest.raises(Unavailable, match="gives no samples"):
        one.decide(one.times[0], skip=True)
    monkeypatch.undo()
    one.life.epoch.rewind()
    one.learn()
    assert one.hashes[-1] == uninterrupted_hash()


def test_the_newest_are_kept_and_of_older_ones_the_first_of_each_interval() -> None:
    retention = Retention(keep=2, history_interval_ms=100, history_keep=3)
    times = [5, 50, 110, 120, 290, 295, 310, 320, 330]
    gone = [times[at] for at in retention.dispensable(times)]
    assert gone == [5, 50, 120, 295]
    assert Retention(keep=2, history_interval_ms=100, history_keep=0).dispensable([1, 2, 3]) == [0]
    assert Retention(keep=1, history_interval_ms=100, history_keep=9).dispensable([1, None, 250]) == [1]
    assert Retention(keep=3, history_interval_ms=100, history_keep=9).dispensable([]) == []


def test_what_the_history_keeps_stays_kept_while_time_goes_on() -> None:
    retention = Retention(keep=3, history_interval_ms=300, history_keep=5)
    kept: list[int] = []
    source = random.Random(0)
    prune: Callable[[list[int]], list[int]] = lambda times: [  # noqa: E731 - one line
        time for at, time in enumerate(times) if at not in retention.dispensable(times)
    ]
    for time in range(1_000, 4_000, 30):
        kept = prune([*kept, time + source.randrange(30)])
    assert {time // 300 for time in kept[:5]} == {9, 10, 11, 12, 13}
    assert all(time % 300 < 60 for time in kept[:5]), "the first of its interval"
    # The oldest of the newest three happens to be the first of its interval.
    assert len(kept) == 7 and kept[-3] > 3_900


def test_a_version_leads_to_the_checkpoint_that_holds_nothing_newer() -> None:
    one = mesh()
    one.learn(8)
    seq = one.life.epoch.publisher.seq
    one.learn(8)
    later = one.life.epoch.publisher.seq
    one.restore(Version(1, later - 1), skip=True)
    assert one.life.learner.state_hash() == one.hashes[0]
    # The restored weights are the first of the next epoch; what lay between can be gone to as well.
    assert one.decide(Version(2, 0), skip=True).target.checkpoint.version == Version(1, seq)
    one.life.epoch.rewind()
    one.restore(Version(1, later), skip=True)
    assert one.life.learner.state_hash() == one.hashes[1]
    assert one.broker.replica.equals(one.life.learner.state_arrays())


def test_a_version_that_was_not_published_yet_is_not_found() -> None:
    one = mesh()
    one.learn(8)
    with pytest.raises(NotFound, match=r"version 1\.999 was not published yet: the newest is 1\."):
        one.decide(Version(1, 999), skip=True)
