"""The index against a dict, the extremes of int64 included."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.common.ranker.tables.index import CELL_WORDS, MAX_LOAD, MISSING, SlotIndex, cells_for, find_many, insert_many

INT64 = np.iinfo(np.int64)
EXTREMES = [INT64.min, -1, 0, 1, INT64.max]
KEYS = st.sampled_from(EXTREMES) | st.integers(-20, 20) | st.integers(INT64.min, INT64.max)


def int64s(values) -> np.ndarray:
    return np.array(list(values), np.int64)


class IndexAgainstDict(RuleBasedStateMachine):
    """Any sequence of inserts and removals leaves the same ids as in a dict, each with a slot of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.index = SlotIndex(capacity=4)
        self.model: dict[int, int] = {}

    @rule(ids=st.sets(KEYS, max_size=30))
    def ids_come(self, ids: set[int]) -> None:
        new = int64s(ids - self.model.keys())
        self.model |= dict(zip(new.tolist(), self.index.insert(new).tolist(), strict=True))

    @rule(ids=st.sets(KEYS, max_size=30))
    def ids_go(self, ids: set[int]) -> None:
        assert self.index.remove(int64s(ids)).tolist() == [self.model.pop(id_, MISSING) for id_ in int64s(ids).tolist()]

    @invariant()
    def they_are_found_where_they_are(self) -> None:
        probe = int64s({*self.model, *EXTREMES, 7})
        assert self.index.find(probe).tolist() == [self.model.get(id_, MISSING) for id_ in probe.tolist()]
        ids, slots = self.index.entries()
        assert ids.tolist() == sorted(self.model)
        assert slots.tolist() == [self.model[id_] for id_ in sorted(self.model)]
        assert len(self.index) == len(set(self.model.values())) == len(self.model)
        assert all(0 <= slot < self.index.capacity for slot in self.model.values())


TestIndexAgainstDict = IndexAgainstDict.TestCase
TestIndexAgainstDict.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


def test_churn_does_not_grow_the_index():
    index = SlotIndex(capacity=64)
    for start in range(0, 100_000, 50):
        ids = np.arange(start, start + 50)
        index.insert(ids)
        index.remove(ids)
    assert index.capacity == 64
    assert index.find(np.arange(100_000)).max() == MISSING


def test_freed_slots_are_used_again():
    index = SlotIndex()
    first = index.insert(int64s([1, 2, 3]))
    index.remove(int64s([2]))
    assert index.insert(int64s([9])).tolist() == [first[1]]


def test_consecutive_ids_probe_as_little_as_theory_says():
    ids = np.arange(100_000)
    words = np.zeros(CELL_WORDS * cells_for(ids.size), np.int64)
    insert_many(words, ids, ids)
    occupied = words[1::CELL_WORDS] != 0
    longest_run = max(len(run) for run in "".join(map(str, occupied.astype(int).tolist())).split("0"))
    assert occupied.mean() <= MAX_LOAD
    assert longest_run < 200


def test_a_full_index_ends_the_search_for_an_absent_id():
    words = np.zeros(CELL_WORDS * 16, np.int64)
    insert_many(words, np.arange(16), np.arange(16))
    slots = np.zeros(1, np.int64)
    find_many(words, int64s([99]), slots)
    assert slots.tolist() == [MISSING]
