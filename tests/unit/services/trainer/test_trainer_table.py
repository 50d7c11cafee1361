"""TrainerTable against a model made of dicts, and the rules that cannot be seen from one call."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.common.platform.errors import CorruptArtifact
from services.trainer.admission import Admission
from services.trainer.trainer_table import Eviction, TrainerTable

INT64 = np.iinfo(np.int64)
EXTREMES = np.array([INT64.min, -1, 0, 1, INT64.max], np.int64)
KEYS = st.sampled_from(EXTREMES.tolist()) | st.integers(-6, 6) | st.integers(INT64.min, INT64.max)
DIM = 3


def int64s(values) -> np.ndarray:
    return np.array(list(values), np.int64)


def table(**options) -> TrainerTable:
    return TrainerTable("user", DIM, **options)


def update(target: TrainerTable, ids: np.ndarray, value: float) -> None:
    slots = target.slots_for_update(ids)
    target.rows[slots[slots >= 0]] = value
    target.mark_touched(ids)


class TableAgainstDicts(RuleBasedStateMachine):
    """Any sequence of calls leaves the table as the same sequence leaves a few dicts."""

    FILTER_FREQ = 2
    STEPS_TO_LIVE = 3
    MAX_ROWS = 8

    def __init__(self) -> None:
        super().__init__()
        self.table = table(
            admission=Admission(filter_freq=self.FILTER_FREQ),
            eviction=Eviction(steps_to_live=self.STEPS_TO_LIVE, max_rows=self.MAX_ROWS),
            default_value=0.5,
        )
        self.step = 0
        self.since_halving = 0
        self.waiting: dict[int, list[int]] = {}
        self.rows: dict[int, dict] = {}
        self.replica: dict[int, tuple] = {}
        self.in_flight = None

    @rule(by=st.integers(0, 3))
    def time_passes(self, by: int) -> None:
        self.step += by
        self.table.advance(self.step)

    @rule(ids=st.lists(KEYS, max_size=20))
    def ids_are_counted(self, ids: list[int]) -> None:
        self.table.count(int64s(ids))
        for id_ in ids:
            if id_ in self.rows:
                self.rows[id_]["frequency"] += 1
                self.rows[id_]["last"] = self.step
            else:
                entry = self.waiting.setdefault(id_, [0, 0])
                entry[0], entry[1] = entry[0] + 1, self.step
        self.since_halving += len(ids)
        while self.since_halving >= 10 * self.MAX_ROWS:
            self.since_halving -= 10 * self.MAX_ROWS
            for row in self.rows.values():
                row["frequency"] //= 2

    @rule(ids=st.sets(KEYS, max_size=12), value=st.floats(-1, 1, width=32))
    def rows_are_updated(self, ids: set[int], value: float) -> None:
        update(self.table, int64s(ids), value)
        for id_ in ids:
            if id_ not in self.rows and self.waiting.get(id_, [0])[0] >= self.FILTER_FREQ:
                self.rows[id_] = {"frequency": self.waiting.pop(id_)[0]}
            if id_ in self.rows:
                self.rows[id_] |= {"value": value, "last": self.step}

    @rule()
    def rows_are_evicted(self) -> None:
        oldest = self.step - self.STEPS_TO_LIVE
        gone = {id_ for id_, row in self.rows.items() if row["last"] < oldest}
        kept = sorted(self.rows.keys() - gone, key=lambda id_: (-self.rows[id_]["frequency"], -self.rows[id_]["last"], id_))
        gone |= set(kept[self.MAX_ROWS :])
        assert self.table.evict(self.step).tolist() == sorted(gone)
        for id_ in gone:
            del self.rows[id_]
        self.waiting = {id_: entry for id_, entry in self.waiting.items() if entry[1] >= oldest}

    @rule()
    def changes_are_taken(self) -> None:
        self.in_flight = self.table.take_touched()
        assert np.all(np.diff(self.in_flight.ids.astype(object)) > 0)
        assert not set(self.in_flight.ids.tolist()) & set(self.in_flight.tombstones.tolist())

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def the_broker_acknowledges(self) -> None:
        for id_ in self.in_flight.tombstones.tolist():
            self.replica.pop(id_, None)
        self.replica |= dict(zip(self.in_flight.ids.tolist(), map(tuple, self.in_flight.rows.tolist()), strict=True))
        self.table.ack_touched(self.in_flight.token)
        self.in_flight = None

    @rule()
    def it_is_restored_from_its_state(self) -> None:
        before = self.table.content_hash()
        state = self.table.state_arrays()
        self.table.load_state_arrays(state)
        self.in_flight = None
        assert self.table.content_hash() == before

    @invariant()
    def rows_and_frequencies_are_those_of_the_model(self) -> None:
        assert self.table.ids().tolist() == sorted(self.rows)
        slots = self.table.slots_of(self.table.ids())
        assert self.table.frequency[slots].tolist() == [self.rows[id_]["frequency"] for id_ in sorted(self.rows)]
        probe = int64s({*self.rows, *EXTREMES.tolist(), 3})
        expected = [self.rows[id_]["value"] if id_ in self.rows else 0.5 for id_ in probe.tolist()]
        np.testing.assert_array_equal(self.table.lookup(probe), np.repeat(np.array(expected, np.float32)[:, None], DIM, axis=1))

    def teardown(self) -> None:
        """A replica that gets every take ends equal to the table."""
        self.changes_are_taken()
        self.the_broker_acknowledges()
        assert self.replica == {id_: (np.float32(row["value"]).item(),) * DIM for id_, row in self.rows.items()}
        assert self.table.take_touched().ids.size == 0


TestTableAgainstDicts = TableAgainstDicts.TestCase
TestTableAgainstDicts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_whole_int64_range_is_a_valid_key():
    subject = table()
    update(subject, EXTREMES, 1.0)
    np.testing.assert_array_equal(subject.lookup(EXTREMES), np.ones((5, DIM), np.float32))
    np.testing.assert_array_equal(subject.lookup(int64s([2, INT64.min + 1])), np.zeros((2, DIM), np.float32))


def test_new_rows_do_not_depend_on_the_order_in_which_ids_appear():
    ids = np.random.default_rng(1).integers(INT64.min, INT64.max, 5000)
    one, other = table(seed=7), table(seed=7)
    one.slots_for_update(ids)
    for part in np.array_split(ids[::-1].copy(), 7):
        other.slots_for_update(part)
    assert one.content_hash() == other.content_hash()
    assert one.content_hash() != TrainerTable("user", DIM, seed=8).content_hash()


def test_new_rows_are_spread_evenly_over_the_initial_range():
    subject = table(init_scale=0.5)
    subject.slots_for_update(np.arange(20_000))
    rows = subject.lookup(np.arange(20_000))
    assert abs(rows.mean()) < 0.01
    assert rows.std() == pytest.approx(1 / np.sqrt(12), abs=0.01)
    assert rows.min() >= -0.5 and rows.max() < 0.5
    assert np.unique(rows).size > 0.99 * rows.size


def test_rows_of_tables_with_other_names_or_seeds_differ():
    ids = np.arange(10)
    tables = [TrainerTable("user", DIM, seed=1), TrainerTable("item", DIM, seed=1), TrainerTable("user", DIM, seed=2)]
    rows = []
    for each in tables:
        each.slots_for_update(ids)
        rows.append(each.lookup(ids))
    assert not np.any(rows[0] == rows[1])
    assert not np.any(rows[0] == rows[2])


def test_a_reused_slot_starts_with_clean_frequency_and_optimizer_state():
    subject = table(eviction=Eviction(steps_to_live=1), accumulator_init=0.25)
    subject.count(int64s([1, 1, 1]))
    slot = subject.slots_for_update(int64s([1]))
    subject.accumulators[slot] = 9.0
    assert subject.evict(5).tolist() == [1]
    reused = subject.slots_for_update(int64s([2]))
    assert reused.tolist() == slot.tolist()
    assert subject.frequency[reused].tolist() == [0]
    np.testing.assert_array_equal(subject.accumulators[reused], np.full((1, 1, DIM), 0.25, np.float32))


def test_rows_below_the_norm_threshold_are_evicted():
    subject = table(eviction=Eviction(l2_weight_threshold=0.1))
    update(subject, int64s([1]), 0.01)
    update(subject, int64s([2]), 0.5)
    assert subject.evict(1).tolist() == [1]


def test_frequency_is_counted_before_duplicates_are_dropped():
    subject = table(admission=Admission(filter_freq=3))
    subject.count(int64s([4, 4]))
    assert subject.slots_for_update(int64s([4])).tolist() == [-1]
    subject.count(int64s([4]))
    slot = subject.slots_for_update(int64s([4]))
    assert subject.frequency[slot].tolist() == [3]


def test_a_change_after_the_take_is_not_lost_by_its_acknowledgement():
    subject = table()
    update(subject, int64s([1, 2]), 1.0)
    taken = subject.take_touched()
    update(subject, int64s([2]), 2.0)
    subject.ack_touched(taken.token)
    assert subject.take_touched().ids.tolist() == [2]


def test_what_was_taken_but_not_acknowledged_is_taken_again():
    subject = table(eviction=Eviction(steps_to_live=0))
    update(subject, int64s([1]), 1.0)
    subject.evict(1)
    update(subject, int64s([2]), 1.0)
    first, second = subject.take_touched(), subject.take_touched()
    assert (first.ids.tolist(), first.tombstones.tolist()) == (second.ids.tolist(), second.tombstones.tolist()) == ([2], [1])


def test_an_id_that_comes_back_after_eviction_is_published_as_a_row():
    subject = table(eviction=Eviction(steps_to_live=0))
    update(subject, int64s([1]), 1.0)
    subject.evict(1)
    update(subject, int64s([1]), 2.0)
    taken = subject.take_touched()
    assert (taken.ids.tolist(), taken.tombstones.tolist()) == ([1], [])


def test_touched_rows_and_tombstones_survive_a_checkpoint():
    subject = table(eviction=Eviction(steps_to_live=0))
    update(subject, int64s([1]), 1.0)
    subject.evict(1)
    update(subject, int64s([2]), 1.0)
    restored = table()
    restored.load_state_arrays(subject.state_arrays())
    taken = restored.take_touched()
    assert (taken.ids.tolist(), taken.tombstones.tolist()) == ([2], [1])


@pytest.mark.parametrize("max_element_size", [0, 1000])
def test_waiting_counts_survive_a_checkpoint(max_element_size: int):
    admission = Admission(filter_freq=2, max_element_size=max_element_size)
    subject, restored = table(admission=admission), table(admission=admission)
    subject.count(int64s([5]))
    restored.load_state_arrays(subject.state_arrays())
    restored.count(int64s([5]))
    assert restored.slots_for_update(int64s([5, 6]))[1] == -1
    assert len(restored) == 1


def test_a_bloom_filter_admits_no_id_too_late_and_few_too_early():
    subject = table(admission=Admission(filter_freq=2, max_element_size=10_000, false_positive_probability=0.01))
    once, twice = np.arange(5000), np.arange(10_000, 15_000)
    subject.count(np.concatenate([once, twice, twice]))
    assert np.all(subject.slots_for_update(twice) >= 0)
    assert np.count_nonzero(subject.slots_for_update(once) >= 0) < 0.03 * once.size


def test_an_evicted_id_counts_from_zero_again_in_a_bloom_filter_too():
    admission = Admission(filter_freq=2, max_element_size=1000)
    subject = table(admission=admission, eviction=Eviction(steps_to_live=0))
    subject.count(int64s([5, 5]))
    assert subject.slots_for_update(int64s([5])).tolist() == [0]
    subject.evict(1)
    subject.count(int64s([5]))
    assert subject.slots_for_update(int64s([5])).tolist() == [-1]


def test_default_value_is_read_by_unknown_and_unadmitted_ids():
    subject = table(admission=Admission(filter_freq=2), default_value=0.25)
    subject.count(int64s([1]))
    np.testing.assert_array_equal(subject.lookup(int64s([1, 99])), np.full((2, DIM), 0.25, np.float32))


def test_the_clock_does_not_run_backwards():
    subject = table()
    subject.advance(3)
    with pytest.raises(ValueError, match="step 2 is before 3"):
        subject.advance(2)


def test_content_hash_ignores_what_is_still_to_be_published():
    subject = table()
    update(subject, int64s([1]), 1.0)
    before = subject.content_hash()
    subject.ack_touched(subject.take_touched().token)
    assert subject.content_hash() == before


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda state: state.pop("table/user/rows"), "no array table/user/rows"),
        (lambda state: state.update({"table/user/rows": np.zeros((1, DIM + 1), np.float32)}), "rows has shape"),
        (lambda state: state.update({"table/user/ids": int64s([2, 1])}), "ids are not strictly ascending"),
        (lambda state: state.update({"table/user/ids": np.array([0.5])}), "ids has shape"),
        (lambda state: state.update({"table/user/frequency": np.array([np.nan])}), "frequency has shape .* of float64"),
        (lambda state: state.update({"table/user/tombstones": np.array([[1], [2]])}), "tombstones has shape"),
        (lambda state: state.update({"table/user/step": np.array(["2026"], "M8[D]")}), "step has shape"),
        (lambda state: state.pop("table/user/waiting/counts"), "no array"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damage, reason):
    source, subject = table(), table()
    update(source, int64s([1]), 1.0)
    update(subject, int64s([2]), 2.0)
    state = source.state_arrays()
    damage(state)
    before = subject.content_hash()
    with pytest.raises(CorruptArtifact, match=reason):
        subject.load_state_arrays(state)
    assert subject.content_hash() == before


@pytest.mark.parametrize("max_element_size", [0, 300])
@pytest.mark.parametrize("filter_freq", [1, 3])
def test_counting_and_finding_at_once_is_counting_and_then_finding_in_any_order(filter_freq: int, max_element_size: int) -> None:
    """The order matters to a Bloom filter: ids share its cells."""
    rng = np.random.default_rng(filter_freq)
    admission = Admission(filter_freq=filter_freq, max_element_size=max_element_size, max_waiting=50)
    rules = {"admission": admission, "eviction": Eviction(max_rows=40, steps_to_live=9), "accumulator_init": 0.1}
    one, two = TrainerTable("item", 4, **rules), TrainerTable("item", 4, **rules)
    for step in range(1, 120):
        occurred = np.minimum(rng.zipf(1.3, 30), 500).astype(np.int64) - 3
        ids = np.unique(np.concatenate([occurred, rng.integers(0, 60, 10)]))
        one.advance(step)
        one.count(occurred)
        slots = one.slots_for_update(ids)
        order = rng.permutation(ids.size)
        counts = np.array([np.count_nonzero(occurred == id_) for id_ in ids])
        two.advance(step)
        found = two.count_and_find(ids[order], counts[order])
        np.testing.assert_array_equal(found >= 0, slots[order] >= 0)
        one.mark_touched(ids)
        two.mark_slots(found)
        if step % 7 == 0:
            np.testing.assert_array_equal(one.evict(step), two.evict(step))
        assert one.content_hash() == two.content_hash()
        left, right = one.state_arrays(), two.state_arrays()
        assert all(np.array_equal(left[name], right[name]) for name in left)
