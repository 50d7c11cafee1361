"""The updater's loop on a log in memory: crashes, gaps, epochs, lost histories; readers see the trainer's rows at the end."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pytest

from services.common.platform.errors import CorruptArtifact, Unavailable
from services.common.ranker.delta import DeltaBody, TableDelta, encode_body
from services.common.ranker.delta_chunks import chunk
from services.common.ranker.tables.reader import ModelReader
from tests.updater_fakes import DIM, NOTHING, FakeBroker, FakeTrainer, Running, reported


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def trainer(broker) -> FakeTrainer:
    trainer = FakeTrainer(broker)
    trainer.rows = {1: 1.0, 2: 2.0}
    return trainer


@pytest.fixture
def start(broker, tmp_path):
    started: list[Running] = []

    def run() -> Running:
        started.append(Running(broker, tmp_path))
        return started[-1]

    yield run
    for each in started:
        if each._thread.is_alive():
            each.stop()


def test_bases_and_deltas_reach_the_readers(trainer, start):
    running = start()
    time.sleep(0.05)
    assert not running.ready.is_set()
    trainer.publish_base("b1")
    trainer.publish({1: 5.0, 3: 3.0})
    trainer.publish({}, gone=[2])
    running.eventually(lambda: running.has(trainer))
    assert running.ready.is_set()
    assert trainer.rows == {1: 5.0, 3: 3.0}
    running.eventually(lambda: reported(running.broker).watermark_ms == 1001)


def test_a_restart_goes_on_where_the_tables_are_without_loading_the_base_again(broker, trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    running = start()
    running.eventually(lambda: running.has(trainer))
    running.stop()
    broker.bases["b1"] = CorruptArtifact("must not be read")
    trainer.publish({2: 7.0})
    running = start()
    running.eventually(lambda: running.has(trainer))


def test_a_repeated_delta_changes_nothing(broker, trainer, start):
    trainer.publish_base("b1")
    records = trainer.publish({1: 5.0, 3: 3.0})
    broker.log.extend(records[:1])
    broker.log.extend(records)
    trainer.publish({4: 4.0})
    running = start()
    running.eventually(lambda: running.has(trainer))


def test_a_gap_waits_for_a_base_and_old_rows_are_served_meanwhile(broker, trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    running = start()
    running.eventually(lambda: running.has(trainer))
    trainer.delta({1: 6.0})
    trainer.publish({3: 3.0})
    running.eventually(lambda: bool(running.updater._follower.blocked))
    reader = ModelReader(running.directory, "s")
    assert reader.status().seq == 0
    np.testing.assert_array_equal(reader.read({"user": np.array([1, 3])}).rows["user"][:, 0], [5.0, 0.0])
    trainer.publish_base("b2")
    trainer.publish({4: 4.0})
    running.eventually(lambda: running.has(trainer))


def test_a_replica_that_cannot_go_on_asks_for_a_base_and_stops_asking_once_one_helped(broker, trainer, start):
    running = start()
    running.eventually(lambda: bool(broker.reports))
    first = broker.reports[0]
    assert (first.applied, first.blocked, first.newest_base_id) == (None, "no base that it can use was announced", "")
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    running.eventually(lambda: running.has(trainer) and not broker.reports[-1].blocked)
    trainer.delta({1: 6.0})
    trainer.publish({3: 3.0})
    running.eventually(lambda: bool(broker.reports[-1].blocked))
    asking = broker.reports[-1]
    assert "a delta is missing" in asking.blocked and (asking.applied.seq, asking.newest_base_id) == (0, "b1")
    trainer.publish_base("b2")
    running.eventually(lambda: running.has(trainer) and not broker.reports[-1].blocked)


def test_a_last_delta_of_an_epoch_that_is_missing_is_noticed_at_the_next_epoch(broker, trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    trainer.delta({1: 6.0})
    trainer.claim_next_epoch()
    trainer.publish({2: 8.0}, continues_epoch=1, continues_seq=1)
    running = start()
    running.eventually(lambda: "continues 1.1, only 0 is applied: a delta is missing" in running.updater._follower.blocked)
    trainer.publish_base("b2")
    running.eventually(lambda: running.has(trainer))


class Disk:
    """What the tables are reserved on; full while `is_full`."""

    def __init__(self, monkeypatch) -> None:
        self.is_full, self.num_refusals = False, 0
        reserve = os.posix_fallocate

        def fallocate(descriptor: int, offset: int, length: int) -> None:
            if self.is_full:
                self.num_refusals += 1
                raise OSError(errno.ENOSPC, "No space left on device")
            reserve(descriptor, offset, length)

        monkeypatch.setattr(os, "posix_fallocate", fallocate)


def editions(directory) -> list[str]:
    return sorted(path.name for path in directory.glob("edition-*"))


def test_a_disk_that_is_full_is_waited_for_and_nothing_half_made_stays_on_it(trainer, start, monkeypatch):
    disk = Disk(monkeypatch)
    disk.is_full = True
    trainer.publish_base("b1")
    running = start()
    running.eventually(lambda: disk.num_refusals >= 3)
    disk.is_full = False
    running.eventually(lambda: running.has(trainer))
    assert len(editions(running.directory)) == 1


def test_tables_that_cannot_grow_are_served_as_they_are_and_the_delta_is_applied_once_there_is_room(trainer, start, monkeypatch):
    disk = Disk(monkeypatch)
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    running = start()
    running.eventually(lambda: running.has(trainer))
    disk.is_full = True
    trainer.publish({id_: float(id_) for id_ in range(3_000)})
    running.eventually(lambda: disk.num_refusals >= 3)
    assert ModelReader(running.directory, "s").status().seq == 0
    assert len(editions(running.directory)) == 1
    disk.is_full = False
    running.eventually(lambda: running.has(trainer))


def test_a_base_of_which_no_tables_can_be_made_is_refused(broker, trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    trainer.publish_base("b2")
    broker.bases["b2"].tables["../user"] = broker.bases["b2"].tables["user"]
    running = start()
    running.eventually(lambda: running.has(trainer))
    assert ModelReader(running.directory, "s").status().base_id == "b1"


def test_a_damaged_delta_is_refused_and_recovered_from_by_the_next_base(broker, trainer, start):
    trainer.publish_base("b1")
    damaged = trainer.delta({1: 9.0})
    damaged[0].body = b"\xff" * len(damaged[0].body)
    broker.log.extend(damaged)
    broker.log.append(None)
    trainer.publish({3: 3.0})
    running = start()
    running.eventually(lambda: bool(running.updater._follower.blocked))
    assert ModelReader(running.directory, "s").status().seq == -1
    trainer.publish_base("b2")
    running.eventually(lambda: running.has(trainer))


def test_a_new_epoch_goes_on_in_place_and_shuts_the_old_trainer_out(broker, trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    zombie = FakeTrainer(broker)
    zombie.seq, zombie.base_id = trainer.seq, "b1"
    trainer.claim_next_epoch()
    trainer.publish({2: 8.0})
    zombie.publish({1: 666.0})
    trainer.publish({3: 3.0})
    running = start()
    running.eventually(lambda: running.has(trainer))
    assert trainer.rows[1] == 5.0


def test_a_new_epoch_with_a_base_of_its_own_is_loaded(trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    running = start()
    running.eventually(lambda: running.has(trainer))
    trainer.claim_next_epoch()
    trainer.rows = {9: 9.0}
    trainer.publish_base("b2")
    trainer.publish({10: 10.0})
    running.eventually(lambda: running.has(trainer))


def test_a_useless_base_is_refused_and_the_one_before_is_used(broker, trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    trainer.publish_base("b2", error=CorruptArtifact("rows.npy is damaged"))
    running = start()
    running.eventually(lambda: running.has(trainer))
    assert ModelReader(running.directory, "s").status().base_id == "b1"


def test_a_store_that_does_not_answer_is_tried_again(broker, trainer, start):
    trainer.publish_base("b1", error=Unavailable("the store is down"))
    running = start()
    running.eventually(lambda: broker.num_connections > 3)
    trainer.publish_base("b1")
    running.eventually(lambda: running.has(trainer))


def test_a_broker_that_goes_down_is_waited_for(broker, trainer, start):
    trainer.publish_base("b1")
    running = start()
    running.eventually(lambda: running.has(trainer))
    broker.is_down = True
    trainer.publish({3: 3.0})
    time.sleep(0.05)
    assert not running.has(trainer)
    broker.is_down = False
    running.eventually(lambda: running.has(trainer))


def test_deltas_deleted_before_they_were_read_are_noticed(broker, trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    running = start()
    running.eventually(lambda: running.has(trainer))
    running.stop()
    trainer.publish({1: 6.0})
    broker.first_offset, broker.log = broker.first_offset + len(broker.log), []
    trainer.publish({3: 3.0})
    running = start()
    running.eventually(lambda: bool(running.updater._follower.blocked))
    trainer.publish_base("b2")
    running.eventually(lambda: running.has(trainer))


def test_a_broker_that_lost_its_data_is_noticed_and_not_believed(broker, trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    running = start()
    running.eventually(lambda: running.has(trainer))
    broker.log, broker.pointers, broker.lineage = [], [], ""
    running.eventually(lambda: running.updater._follower.applied is None)
    assert ModelReader(running.directory, "s").status().seq == 0
    broker.lineage = "l2"
    trainer.claim_next_epoch()
    trainer.rows = {7: 7.0}
    trainer.publish_base("b2")
    trainer.publish({8: 8.0})
    running.eventually(lambda: running.has(trainer))


def test_a_broker_that_only_says_that_its_log_is_shorter_is_followed_on(broker, trainer, start):
    broker.says_shorter = True
    trainer.publish_base("b1")
    running = start()
    running.eventually(lambda: running.has(trainer))
    time.sleep(0.05)
    trainer.publish({1: 5.0})
    running.eventually(lambda: running.has(trainer))
    assert broker.num_connections == 1


def test_tables_of_another_lineage_are_not_gone_on_from(broker, trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    running = start()
    running.eventually(lambda: running.has(trainer))
    running.stop()
    broker.log, broker.pointers, broker.lineage = [], [], "l2"
    trainer.rows = {7: 7.0}
    trainer.publish_base("b1")
    running = start()
    running.eventually(lambda: running.has(trainer))


def test_a_delta_that_does_not_fit_the_tables_is_refused(broker, trainer, start):
    trainer.publish_base("b1")
    trainer.publish({1: 5.0})
    body = DeltaBody({"film": TableDelta(np.array([1]), np.ones((1, DIM), np.float32), NOTHING)})
    (foreign,) = trainer.delta()[:1]
    header = foreign.header
    broker.log.extend(chunk(header, encode_body(body, header.dtype)))
    running = start()
    running.eventually(lambda: running.ready.is_set() and ModelReader(running.directory, "s").status().seq == 0)
    trainer.publish({2: 2.5})
    running.eventually(lambda: "a delta is missing" in running.updater._follower.blocked)
