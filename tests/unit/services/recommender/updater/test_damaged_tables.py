"""Bits that change by themselves under a running updater: found, and built again from a base, by deltas and all."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.ranker.tables.edition import current_edition
from services.common.ranker.tables.reader import ModelReader
from services.common.ranker.tables.writer import ModelWriter
from tests.updater_fakes import FakeBroker, FakeTrainer, Running


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


@pytest.mark.parametrize("file", ["table-user", "control", "dense"])
def test_damaged_tables_are_found_and_built_again_from_the_same_base_and_the_deltas_since(trainer, start, tmp_path, caplog, file):
    trainer.publish_base("b1")
    trainer.publish({3: 3.0}, gone=[2])
    running = start()
    running.eventually(lambda: running.has(trainer))
    open_before = ModelReader(tmp_path, "s")
    before = current_edition(tmp_path)
    words = np.memmap(before / file, np.int64, "r+")
    # The number of the current one of the two buffers of dense weights; else the last word that is in use.
    words[2 if file == "dense" else np.flatnonzero(words)[-1]] ^= 1 << 17
    running.eventually(lambda: current_edition(tmp_path) not in (None, before) and running.has(trainer))
    assert "damaged and will be built again from a base" in caplog.text
    trainer.publish({4: 4.0})
    running.eventually(lambda: running.has(trainer))
    assert open_before.read({"user": np.array([2, 3, 4])}).rows["user"][:, 0].tolist() == [0.0, 3.0, 4.0], "a reader of before follows"


def test_damage_that_a_delta_meets_is_found_before_it_is_looked_for(trainer, start, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ModelWriter, "check", lambda _self, _share: None)
    trainer.publish_base("b1")
    running = start()
    running.eventually(lambda: running.has(trainer))
    before = current_edition(tmp_path)
    words = np.memmap(before / "table-user", np.int64, "r+")
    # Ids 1 and 2 have slots 0 and 1, so the cell of id 1 is the words (1, 1): let it name the row of id 2.
    cell = next(at for at in range(words.size - 1) if words[at] == 1 and words[at + 1] == 1 and at >= 64)
    words[cell + 1] = 2
    trainer.publish({1: 9.0})
    running.eventually(lambda: current_edition(tmp_path) not in (None, before) and running.has(trainer))
    assert "rows that are other ids'" in caplog.text
