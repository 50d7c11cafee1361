import random
from dataclasses import replace

import numpy as np
import pytest
from tunemesh.events.v1.delta_pb2 import ROW_DTYPE_BF16, ROW_DTYPE_FP32, ROW_DTYPE_INT8_ROWWISE, Delta, RowDtype

from services.common.platform.control import ControlState
from services.common.platform.errors import ConfigurationError, Unavailable
from services.common.ranker.delta_chunks import Reassembler
from services.trainer.neighbours import Fenced, HistoryLost
from services.trainer.samples import parse_record
from tests.trainer_fakes.broker import FakeBroker, bootstrapped_now, broker_with
from tests.trainer_fakes.faults import Crash, Faults
from tests.trainer_fakes.learner import FakeLearner
from tests.trainer_fakes.life import Life, start
from tests.trainer_fakes.logs import FakeControlLog, FakeDeltaLog
from tests.trainer_fakes.replica import Follower
from tests.trainer_fakes.sample_logs import SPEC, sample_log
from tests.trainer_fakes.stores import FakeBases


def publish(life: Life) -> None:
    epoch = life.epoch
    if epoch.publisher.poll(epoch.learner):
        epoch.publisher.publish(epoch.learner, epoch.merge.position, now_ms=7, traceparent="")


def publish_all(life: Life) -> None:
    life.epoch.publisher.flush(life.learner, 1_000)
    publish(life)
    life.epoch.publisher.flush(life.learner, 1_000)


def read_some(life: Life) -> bool:
    for record in life.samples.poll(0):
        life.epoch.merge.push(record.partition, parse_record(SPEC, record.offset, record.value, record.headers))
    return any(position < end for position, (_, end) in zip(life.samples.positions, life.samples.ranges(), strict=True))


def learn(life: Life, source: random.Random, *, max_batches: int = 10**9) -> None:
    """Learn to the end of the log, or max_batches, with deltas, checkpoints and bases at random moments."""
    epoch, more, num_batches = life.epoch, True, 0
    while more:
        more = read_some(life)
        while num_batches < max_batches and (batch := epoch.merge.next_batch()) is not None:
            num_batches += 1
            epoch.learn(batch)
            if source.random() < 0.3:
                publish(life)
            if source.random() < 0.1:
                epoch.stores.checkpoints.write(epoch.cut(), now_ms=7)
            if source.random() < 0.02:
                epoch.publish_base()
        if num_batches == max_batches:
            return
    publish_all(life)


def uninterrupted_hash(seed: int) -> str:
    life = start(broker_with(sample_log(seed)))
    learn(life, random.Random(0))
    return life.learner.state_hash()


def test_the_state_does_not_depend_on_when_things_are_polled_published_or_written() -> None:
    hashes = set()
    for seed in range(6):
        life = start(broker_with(sample_log(1)), source=random.Random(seed))
        learn(life, random.Random(seed))
        hashes.add(life.learner.state_hash())
    assert len(hashes) == 1


def test_a_repeated_sample_is_learned_once() -> None:
    life = start(broker_with(sample_log(1)))
    learn(life, random.Random(0))
    assert life.epoch.counters.duplicates_skipped > 0
    assert life.epoch.counters.samples_trained > 150


@pytest.mark.parametrize("seed", range(12))
def test_after_crashes_at_random_writes_weights_and_replicas_equal_those_of_an_uninterrupted_run(seed: int) -> None:
    source = random.Random(seed)
    broker = broker_with(sample_log(seed))
    for _ in range(12):
        faults = Faults(countdown=source.choice([*range(1, 12), source.randrange(12, 60)]), after=source.random() < 0.5)
        try:
            learn(start(broker, faults=faults, source=source), source)
        except Crash:
            continue
    life = start(broker)
    learn(life, source)
    assert life.learner.state_hash() == uninterrupted_hash(seed)
    assert broker.replica.equals(life.learner.state_arrays())
    assert bootstrapped_now(broker).equals(life.learner.state_arrays())
    epochs = [record.epoch_claim.epoch for record in broker.control if record.WhichOneof("value") == "epoch_claim"]
    assert epochs == sorted(set(epochs))


def test_a_crash_at_each_single_write_of_a_short_life_changes_nothing() -> None:
    expected = uninterrupted_hash(3)
    probe = Faults()
    life = start(broker_with(sample_log(3)), faults=probe)
    learn(life, random.Random(5), max_batches=12)
    assert probe.num_operations > 9
    for countdown in range(1, probe.num_operations + 1):
        for after in (False, True):
            broker = broker_with(sample_log(3))
            with pytest.raises(Crash):
                learn(start(broker, faults=Faults(countdown=countdown, after=after)), random.Random(5), max_batches=12)
            life = start(broker)
            learn(life, random.Random(6))
            assert life.learner.state_hash() == expected, (countdown, after)
            assert broker.replica.equals(life.learner.state_arrays()), (countdown, after)
            assert bootstrapped_now(broker).equals(life.learner.state_arrays()), (countdown, after)


def test_what_a_zombie_published_after_the_cut_is_published_again_or_taken_back() -> None:
    broker = broker_with(sample_log(2))
    zombie = start(broker)
    learn(zombie, random.Random(9), max_batches=20)
    successor = start(broker)
    zombie.learner.learn([])
    zombie.learner.tables["user"].slots_for_update(np.array([-5], np.int64))
    publish_all(zombie)
    assert broker.replica.equals(successor.learner.state_arrays())
    assert not broker.replica.equals(zombie.learner.state_arrays())
    with pytest.raises(Fenced, match="epoch 2 of ranker was claimed"):
        zombie.epoch.check_ownership()
    successor.epoch.check_ownership()


def test_an_epoch_begins_on_a_broker_that_takes_long_to_answer_and_a_look_in_passing_does_not_wait_for_it() -> None:
    slow = Faults(broker_takes_ms=10_000)
    life = start(broker_with(sample_log(2)), faults=slow)
    with pytest.raises(Unavailable, match="not answered within 2000 ms"):
        life.epoch.check_ownership()
    slow.broker_takes_ms = 0
    life.epoch.check_ownership()


@pytest.mark.parametrize("moment", [(FakeControlLog, "append"), (FakeDeltaLog, "read")])
def test_a_zombie_that_publishes_while_its_successor_begins_is_taken_back(moment: tuple[type, str]) -> None:
    broker = broker_with(sample_log(2))
    zombie = start(broker)
    learn(zombie, random.Random(9), max_batches=20)
    owner, name = moment
    original = getattr(owner, name)

    def then_the_zombie_publishes(*arguments: object) -> object:
        result = original(*arguments)
        patch.undo()
        zombie.learner.tables["user"].slots_for_update(np.array([-5], np.int64))
        publish_all(zombie)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, then_the_zombie_publishes)
        successor = start(broker)
    assert -5 in user_ids_published_before(broker, successor.epoch.number)
    assert broker.replica.equals(successor.learner.state_arrays())


def user_ids_published_before(broker: FakeBroker, epoch: int) -> set[int]:
    reassembler, ids = Reassembler(), set()
    for record in broker.deltas:
        complete = reassembler.add(record) if record is not None else None
        if complete is not None and complete.header.epoch < epoch and complete.body:
            ids.update(complete.decode().tables["user"].ids.tolist())
    return ids


def test_the_first_start_gives_the_broker_a_lineage_and_begins_with_a_base() -> None:
    broker = broker_with(sample_log(1))
    life = start(broker)
    subjects = [record.subject for record in broker.control]
    assert subjects == ["lineage", "epoch/ranker"]
    assert broker.control[1].epoch_claim.continues_from == "checkpoint-000001-000001"
    assert (broker.bases[0].epoch, broker.bases[0].seq, list(broker.bases[0].delta_offsets)) == (1, -1, [0])
    assert life.epoch.publisher.base_id == "base-000001-000001"


def test_a_learner_without_checkpoints_begins_with_the_initial_base() -> None:
    trained = FakeLearner()
    trained.steps = 5
    trained.tables["user"].slots_for_update(np.array([77], np.int64))
    broker = broker_with(sample_log(1))
    life = start(broker, initial=trained.state_arrays())
    assert life.learner.state_hash() == trained.state_hash()
    assert bootstrapped_now(broker).rows["user"].keys() == {77}
    publish(life)
    assert not broker.deltas[0].header.heartbeat or broker.deltas[0].body == b""


def test_a_continued_epoch_begins_without_a_new_base() -> None:
    broker = broker_with(sample_log(1))
    learn(start(broker), random.Random(1), max_batches=10)
    life = start(broker)
    assert len(broker.bases) == len({pointer.epoch for pointer in broker.bases}) == 1
    assert life.epoch.number == 2
    fences = [record.header for record in broker.deltas if record.header.epoch == 2]
    assert (fences[0].seq, fences[0].prev_seq, fences[0].heartbeat) == (0, -1, True)


def test_deltas_that_retention_removed_make_a_new_base() -> None:
    broker = broker_with(sample_log(1))
    learn(start(broker), random.Random(1), max_batches=20)
    broker.first_delta_offset = len(broker.deltas)
    broker.deltas.append(broker.deltas[-1])
    life = start(broker)
    learn(life, random.Random(2))
    assert broker.bases[-1].epoch == 2
    assert bootstrapped_now(broker).equals(life.learner.state_arrays())


def test_a_damaged_delta_behind_the_cut_makes_a_new_base() -> None:
    broker = broker_with(sample_log(1))
    life = start(broker)
    learn(life, random.Random(1), max_batches=20)
    broken = broker.deltas[-1]
    broken.header.body_crc32c ^= 1
    life = start(broker)
    assert broker.bases[-1].epoch == 2
    assert bootstrapped_now(broker).equals(life.learner.state_arrays()) or not broker.deltas[broker.bases[-1].delta_offsets[0] :]


def test_another_broker_is_refused_and_can_be_adopted_with_the_weights_kept() -> None:
    first = broker_with(sample_log(1))
    life = start(first)
    learn(life, random.Random(1))
    life.epoch.stores.checkpoints.write(life.epoch.cut(), now_ms=7)
    other = broker_with(sample_log(4), first.disk)
    with pytest.raises(ConfigurationError, match="has no lineage"):
        start(other)
    assert not other.control and not other.deltas
    adopted = start(other, config={"on_lineage_change": "adopt"})
    assert adopted.learner.state_hash() == life.learner.state_hash()
    assert adopted.epoch.merge.position.offsets == [0, 0]
    assert adopted.epoch.number == 2
    assert bootstrapped_now(other).rows.keys() == {"user", "item"}
    learn(adopted, random.Random(2))
    again = start(other)
    assert again.epoch.lineage_id == adopted.epoch.lineage_id
    learn(again, random.Random(3))
    assert again.learner.state_hash() == adopted.learner.state_hash()
    assert other.replica.equals(again.learner.state_arrays())


def test_a_crash_while_adopting_still_ends_with_a_base_for_the_replicas() -> None:
    for countdown in range(1, 6):
        for after in (False, True):
            first = broker_with(sample_log(1))
            other = broker_with(sample_log(4), first.disk)
            life = start(first)
            learn(life, random.Random(1), max_batches=20)
            life.epoch.stores.checkpoints.write(life.epoch.cut(), now_ms=7)
            with pytest.raises(Crash):
                start(other, config={"on_lineage_change": "adopt"}, faults=Faults(countdown=countdown, after=after))
            adopted = start(other, config={"on_lineage_change": "adopt"})
            learn(adopted, random.Random(2))
            assert other.replica.equals(adopted.learner.state_arrays()), (countdown, after)


def test_a_broker_whose_control_log_shrank_is_noticed_while_running() -> None:
    broker = broker_with(sample_log(1))
    life = start(broker)
    broker.control.clear()
    with pytest.raises(HistoryLost):
        life.epoch.check_ownership()


def test_another_lineage_is_noticed_while_running() -> None:
    broker = broker_with(sample_log(1))
    life = start(broker)
    state = ControlState()
    state.apply(broker.control[0])
    broker.control.append(state.lineage_change("OTHER", now_ms=1, actor="x"))
    with pytest.raises(HistoryLost, match="OTHER"):
        life.epoch.check_ownership()


def test_a_base_in_the_middle_serves_new_replicas_and_is_not_needed_by_old_ones() -> None:
    broker = broker_with(sample_log(1))
    life = start(broker)
    learn(life, random.Random(1), max_batches=20)
    pointer = life.epoch.publish_base()
    assert (pointer.epoch, pointer.seq) == (1, life.epoch.publisher.seq)
    learn(life, random.Random(2))
    assert broker.replica.equals(life.learner.state_arrays())
    assert bootstrapped_now(broker).equals(life.learner.state_arrays())


def keep_all_bases(life: Life) -> None:
    assert isinstance(life.epoch.stores.bases, FakeBases)
    life.epoch.stores.bases.keep = 99


@pytest.mark.parametrize("dtype", [ROW_DTYPE_FP32, ROW_DTYPE_BF16, ROW_DTYPE_INT8_ROWWISE])
def test_replicas_at_one_version_are_equal_whatever_the_way_there(dtype: RowDtype) -> None:
    """Each loads another base and follows from there; at every version that two of them pass they have one hash."""
    source = random.Random(4)
    broker = broker_with(sample_log(4, num_ticks=24))
    life = start(broker, config={"dtype": dtype})
    keep_all_bases(life)
    for round_ in range(12):
        learn(life, source, max_batches=3)
        if round_ in (3, 7, 10):
            life.epoch.publish_base()
        if round_ == 5:
            life = start(broker, config={"dtype": dtype})
            keep_all_bases(life)
    publish_all(life)
    hashes: dict[tuple[int, int], set[str]] = {}
    ways = 0
    for pointer in broker.bases:
        if pointer.uri in broker.disk.bases:
            ways += 1
            follower = Follower(broker.read_base)
            follower.load(pointer)
            hashes.setdefault((follower.epoch, follower.seq), set()).add(follower.content_hash())
            for record in broker.deltas[pointer.delta_offsets[0] :]:
                # It has seen the announcements of the bases that it passes.
                follower.base_id = record.header.base_id
                follower.see_delta(record)
                hashes.setdefault((follower.epoch, follower.seq), set()).add(follower.content_hash())
            assert follower.content_hash() == broker.replica.content_hash()
    assert ways >= 3 and len(hashes) > 10
    assert {version for version, found in hashes.items() if len(found) > 1} == set()


def test_other_row_dtypes_begin_with_a_base() -> None:
    broker = broker_with(sample_log(1))
    learn(start(broker), random.Random(1), max_batches=10)
    life = start(broker, config={"dtype": ROW_DTYPE_INT8_ROWWISE})
    assert [pointer.epoch for pointer in broker.bases] == [1, 2]
    learn(life, random.Random(2))
    assert bootstrapped_now(broker).content_hash() == broker.replica.content_hash()


@pytest.mark.parametrize("straddles", [True, False])
def test_a_zombies_delta_that_lies_across_the_look_is_taken_back_and_so_are_those_behind_it(straddles: bool) -> None:
    broker = broker_with(sample_log(2))
    zombie = start(broker)
    learn(zombie, random.Random(9), max_batches=20)
    zombie.epoch.publisher.flush(zombie.learner, 1_000)
    for key in (-5, -6):
        zombie.learner.tables["user"].slots_for_update(np.array([key], np.int64))
        publish_all(zombie)
    behind, last = broker.deltas.pop(), broker.deltas.pop()
    pieces = (last.body[:20], last.body[20:])
    halves = [Delta(header=last.header, chunk_index=at, chunk_count=2, body=piece) for at, piece in enumerate(pieces)]
    broker.deltas.append(halves[0])
    late = [halves[1], behind]
    if not straddles:
        broker.deltas.append(late.pop(0))
    original = FakeDeltaLog.read

    def then_the_rest_arrives(log: FakeDeltaLog, first: int, end: int) -> list[Delta]:
        found = original(log, first, end)
        broker.deltas.extend(late)
        late.clear()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeDeltaLog, "read", then_the_rest_arrives)
        successor = start(broker)
    assert {-5, -6} <= user_ids_published_before(broker, successor.epoch.number)
    assert broker.replica.equals(successor.learner.state_arrays())


def test_a_record_that_is_no_delta_makes_a_new_base() -> None:
    broker = broker_with(sample_log(1))
    learn(start(broker), random.Random(1), max_batches=20)
    broker.deltas.append(None)  # type: ignore[arg-type]
    start(broker)
    assert broker.bases[-1].epoch == 2


def test_the_first_delta_of_an_epoch_says_which_one_it_continues() -> None:
    broker = broker_with(sample_log(1))
    life = start(broker)
    learn(life, random.Random(1), max_batches=20)
    publish_all(life)
    life.epoch.stores.checkpoints.write(life.epoch.cut(), now_ms=7)
    seq = life.epoch.publisher.seq
    start(broker)
    said = [(record.header.continues_epoch, record.header.continues_seq) for record in broker.deltas if record.header.epoch == 2]
    assert said[0] == (1, seq) and set(said[1:]) == {(0, 0)}


def test_the_window_of_ids_survives_a_restart() -> None:
    broker = broker_with(sample_log(1))
    life = start(broker)
    learn(life, random.Random(1))
    life.epoch.stores.checkpoints.write(life.epoch.cut(), now_ms=7)
    again = start(broker)
    before, after = life.epoch.dedup.to_arrays(), again.epoch.dedup.to_arrays()
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    assert again.epoch.counters == replace(life.epoch.counters)
