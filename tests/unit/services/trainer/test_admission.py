"""What the frequency filters admit, measured over many draws of ids, and that what waits is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.admission import Admission, BloomCounter, ExactCounter, load_counter, make_counter
from services.trainer.trainer_table import Eviction, TrainerTable

BATCH = 100


def random_ids(seed: int, count: int) -> np.ndarray:
    """Distinct ids of the whole range, in random order."""
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(-(2**63), 2**63 - 1, count + 10))
    return rng.permutation(ids)[:count]


def admitted(counter: BloomCounter, ids: np.ndarray) -> np.ndarray:
    """Count each of ids [N] once, as the table does; return bool [N]: which have occurred twice, says the filter. These leave it."""
    counter.add(ids, np.ones(ids.size, np.int64), 0)
    earned = counter.get(ids) >= 2
    counter.forget(ids[earned])
    return earned


@pytest.mark.parametrize("seed", range(3))
def test_a_bloom_filter_at_twenty_times_its_size_admits_at_most_a_hundredth_of_the_ids_that_occur_once(seed: int) -> None:
    size = 2_000
    counter = make_counter(Admission(filter_freq=2, max_element_size=size, false_positive_probability=0.01))
    assert isinstance(counter, BloomCounter) and counter.num_bytes / size < 11.2
    earned = [admitted(counter, batch) for batch in random_ids(seed, 20 * size).reshape(-1, BATCH)]
    assert 0.002 < np.mean(earned) < 0.01
    assert np.mean(earned[-size // BATCH :]) < 0.012, "as good at its end as at its beginning"


def test_an_id_that_occurs_again_within_the_size_is_admitted() -> None:
    size = 3_000
    counter = BloomCounter(size, 0.01, 2)
    batches = random_ids(9, 15 * size).reshape(-1, BATCH)
    lag = size // (BATCH + BATCH // 2) - 2
    late = []
    for number, batch in enumerate(batches):
        back = batches[number - lag][: BATCH // 2] if number >= lag else batch[:0]
        late.append(~admitted(counter, np.concatenate([batch, back]))[BATCH:])
    assert np.mean(np.concatenate(late)) < 0.006


def test_a_bloom_filter_forgets_after_twice_its_size() -> None:
    counter = BloomCounter(1_000, 0.01, 2)
    early = random_ids(1, 500)
    counter.add(early, np.ones(early.size, np.int64), 0)
    for batch in random_ids(2, 2_500).reshape(-1, BATCH):
        counter.add(batch, np.ones(batch.size, np.int64), 0)
    assert np.mean(counter.get(early) >= 1) < 0.02


def test_a_bloom_filter_forgets_what_has_not_been_seen_for_twice_the_time_to_live() -> None:
    table = TrainerTable("user", 2, admission=Admission(filter_freq=2, max_element_size=1_000), eviction=Eviction(steps_to_live=10))
    table.count(np.array([5], np.int64))
    for step in range(1, 24):
        table.advance(step)
        table.count(np.array([10_000 + step], np.int64))
        table.evict(step)
    table.count(np.array([5], np.int64))
    assert table.slots_for_update(np.array([5], np.int64)).tolist() == [-1]


@pytest.mark.parametrize("filter_freq", [2, 15, 16, 255])
def test_counts_up_to_the_filter_frequency_fit_the_cells(filter_freq: int) -> None:
    counter = BloomCounter(1_000, 0.01, filter_freq)
    ids = random_ids(3, 200)
    for occurrence in range(1, filter_freq + 1):
        counter.add(ids, np.ones(ids.size, np.int64), 0)
        least = counter.get(ids).min()
        assert least == min(occurrence, 15 if filter_freq <= 15 else 255)
    counter.add(ids, np.full(ids.size, 10**9), 0)
    assert (counter.get(ids) >= filter_freq).all()


def test_one_batch_larger_than_the_filter_does_not_fill_it_beyond_its_size() -> None:
    counter = BloomCounter(500, 0.01, 2)
    ids = random_ids(4, 20_000)
    counter.add(ids, np.ones(ids.size, np.int64), 0)
    assert np.mean(counter.get(random_ids(5, 20_000)) > 0) < 0.012


def test_ten_times_as_many_ids_as_may_wait_leave_the_newest() -> None:
    """Without steps_to_live."""
    limit = 10_000
    table = TrainerTable("user", 2, admission=Admission(filter_freq=2, max_waiting=limit))
    ids = random_ids(6, 10 * limit)
    for step, batch in enumerate(ids.reshape(-1, 1_000)):
        table.advance(step)
        table.count(batch)
        assert table.state_arrays()["table/user/waiting/ids"].size <= 1.25 * limit
    for name in ("newest", "oldest"):
        table.count(ids[-limit:] if name == "newest" else ids[:limit])
        slots = table.slots_for_update(ids[-limit:] if name == "newest" else ids[:limit])
        assert np.all(slots >= 0) if name == "newest" else np.all(slots < 0)


def test_which_ids_wait_does_not_depend_on_a_restart() -> None:
    whole, stopped = ExactCounter(50), ExactCounter(50)
    for step, batch in enumerate(random_ids(7, 3_000).reshape(-1, 10)):
        whole.add(batch, np.ones(10, np.int64), step)
        stopped.add(batch, np.ones(10, np.int64), step)
        again = ExactCounter(50)
        again.load_state_arrays(stopped.state_arrays())
        stopped = again
    for key, array in whole.state_arrays().items():
        np.testing.assert_array_equal(array, stopped.state_arrays()[key])


def test_a_bloom_filter_goes_on_from_its_saved_state_bit_for_bit() -> None:
    whole, stopped = BloomCounter(300, 0.01, 3), BloomCounter(300, 0.01, 3)
    for step, batch in enumerate(random_ids(8, 2_000).reshape(-1, 40)):
        for counter in (whole, stopped):
            counter.add(batch, np.ones(40, np.int64), step)
            counter.forget(batch[:5])
        again = BloomCounter(300, 0.01, 3)
        again.load_state_arrays(stopped.state_arrays())
        stopped = again
    for key, array in whole.state_arrays().items():
        np.testing.assert_array_equal(array, stopped.state_arrays()[key])


def test_counts_survive_a_change_from_exact_counting_to_a_bloom_filter_and_the_rest_is_named() -> None:
    exact, bloom = Admission(filter_freq=3), Admission(filter_freq=3, max_element_size=1_000)
    ids = np.sort(random_ids(10, 100))
    before = make_counter(exact)
    before.add(ids, np.full(100, 2), 7)
    kept, lost = load_counter(bloom, before.state_arrays())
    assert (kept.get(ids) == 2).all() and lost == ""
    assert "counts exactly" in load_counter(exact, kept.state_arrays())[1]
    other, lost = load_counter(Admission(filter_freq=3, max_element_size=9_000), kept.state_arrays())
    assert (other.get(ids) == 0).all() and "this configuration needs" in lost


def spec(admission: dict[str, object]) -> FeatureSpec:
    return FeatureSpec.parse(
        {
            "format": 1,
            "model": "ranker",
            "tables": {"user": {"dim": 8, "admission": admission}, "item": {"dim": 8}},
            "kinds": {"click": {}},
            "tasks": [{"name": "interact", "labels": {"click": 1}, "unanswered": 0}],
            "blend": {"interact": 1.0},
        }
    )


def test_the_feature_spec_reaches_the_bloom_filter_and_does_not_change_the_schema() -> None:
    parsed = spec({"min_count": 2, "max_element_size": 5_000, "false_positive_probability": 0.02})
    assert parsed.tables.user.admission.max_element_size == 5_000
    assert parsed.schema_hash == spec({}).schema_hash
    with pytest.raises(ConfigurationError, match=r"tables\.user\.admission.*counts to 255"):
        spec({"min_count": 256, "max_element_size": 5_000})
    with pytest.raises(ConfigurationError, match="false_positive_probability"):
        spec({"min_count": 2, "max_element_size": 5_000, "false_positive_probability": 1})
