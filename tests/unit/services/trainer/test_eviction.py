"""Which rows `max_rows` keeps, measured on streams of ids."""

from __future__ import annotations

import numpy as np
import pytest

from services.trainer.trainer_table import Eviction, TrainerTable

IDS, ROWS, BATCH, TOTAL = 10_000, 500, 50, 50_000


class Recency(TrainerTable):
    """Keeps what occurred last."""

    def evict(self, step: int) -> np.ndarray:
        self.frequency[:] = 0
        return super().evict(step)


class Lifetime(TrainerTable):
    """Keeps what occurred most often since it was made."""

    def _age(self, num_occurrences: int) -> None:
        pass


def stream(kind: str, seed: int) -> np.ndarray:
    """Ids by Zipf 0.9: "steady"; "drift": every 5,000 occurrences the 50 favourites are new ids; "scan": every second id occurs once."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, IDS + 1) ** -0.9
    ranks = rng.choice(IDS, TOTAL, p=weights / weights.sum())
    if kind == "drift":
        return np.where(ranks < 50, ranks + np.arange(TOTAL) // 5_000 * 1_000_000, ranks)
    if kind == "scan":
        ranks[1::2] = 10**9 + np.arange(TOTAL // 2)
    return ranks


def share_met(table_class: type[TrainerTable], ids: np.ndarray) -> float:
    """The share of occurrences that met a row, with eviction every 250 ids."""
    table, met = table_class("user", 1, optimizer_slots=0, eviction=Eviction(max_rows=ROWS)), 0
    for step, batch in enumerate(ids.reshape(-1, BATCH)):
        table.advance(step)
        met += np.count_nonzero(table.slots_of(batch) >= 0)
        table.count(batch)
        table.slots_for_update(np.unique(batch))
        if step % 5 == 4:
            table.evict(step)
    return met / ids.size


@pytest.mark.parametrize("kind", ["steady", "drift", "scan"])
def test_recent_frequency_keeps_more_of_what_comes_back_than_recency_alone(kind: str) -> None:
    ids = stream(kind, seed=1)
    assert share_met(TrainerTable, ids) > share_met(Recency, ids) + 0.01


def test_favourites_of_the_past_make_room_which_a_lifetime_frequency_does_not_give() -> None:
    ids = stream("drift", seed=2)
    assert share_met(TrainerTable, ids) > share_met(Lifetime, ids) + 0.02


def test_new_ids_that_are_as_frequent_as_old_ones_were_take_their_place() -> None:
    table = TrainerTable("user", 1, eviction=Eviction(max_rows=1_000))
    old, new = np.arange(1_000), np.arange(1_000, 2_000)
    step = 0
    for ids in (old, new):
        for _ in range(1_000):
            step += 1
            table.advance(step)
            table.count(ids)
            table.slots_for_update(ids)
            if step % 100 == 0:
                table.evict(step)
    assert table.ids().tolist() == new.tolist()


def test_what_is_evicted_does_not_depend_on_restarts() -> None:
    whole, stopped = (TrainerTable("user", 1, eviction=Eviction(max_rows=ROWS)) for _ in range(2))
    for step, batch in enumerate(stream("drift", seed=3).reshape(-1, BATCH)):
        for table in (whole, stopped):
            table.advance(step)
            table.count(batch)
            table.slots_for_update(np.unique(batch))
        if step % 5 == 4:
            assert whole.evict(step).tolist() == stopped.evict(step).tolist()
        if step % 70 == 3:
            restarted = TrainerTable("user", 1, eviction=Eviction(max_rows=ROWS))
            restarted.load_state_arrays(stopped.state_arrays())
            stopped = restarted
    assert whole.content_hash() == stopped.content_hash()


def test_a_checkpoint_of_before_frequencies_were_halved_is_read() -> None:
    table = TrainerTable("user", 1, eviction=Eviction(max_rows=ROWS))
    table.count(np.arange(20))
    table.slots_for_update(np.arange(20))
    state = table.state_arrays()
    del state["table/user/since_halving"]
    restored = TrainerTable("user", 1, eviction=Eviction(max_rows=ROWS))
    restored.load_state_arrays(state)
    assert restored.ids().tolist() == list(range(20))
