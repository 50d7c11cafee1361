import random
from collections import defaultdict

import numpy as np
import pytest

from services.common.platform.ids import sample_ids as ids_of
from services.trainer.dedup import DedupWindow, take_arrays

BIG = 1_000_000


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def known(window: DedupWindow) -> list[int]:
    return window.to_arrays()["dedup/sample_ids"].tolist()


def test_a_repeated_id_is_not_new() -> None:
    window = DedupWindow(10, 10)
    assert window.add(ids(1, 2)).tolist() == [True, True]
    assert window.add(ids(2, 3)).tolist() == [False, True]


def test_of_two_equal_ids_in_one_call_only_the_first_is_new() -> None:
    assert DedupWindow(10, 10).add(ids(5, 5, 6, 5)).tolist() == [True, False, True, False]


def test_ids_of_groups_without_an_offset_are_forgotten_by_number() -> None:
    window = DedupWindow(3, 10)
    window.add(ids(1, 2, 3))
    window.add(ids(4))
    assert known(window) == [2, 3, 4]
    assert window.add(ids(1)).tolist() == [True]


def test_an_id_is_remembered_until_its_exposure_is_done_and_then_known_by_its_offset() -> None:
    window = DedupWindow(1, 100)
    window.add(ids(1, 2), exposure_offset=5)
    window.add(ids(3), exposure_offset=6)
    assert window.add(ids(1, 2, 3), exposure_offset=5, exposures_done=5).tolist() == [False] * 3
    window.add(ids(4), exposure_offset=7, exposures_done=6)
    assert known(window) == [3, 4]
    assert window.add(ids(1, 2), exposure_offset=5, exposures_done=6).tolist() == [False, False]
    assert window.add(ids(9), exposure_offset=5, exposures_done=6).tolist() == [False]
    assert window.take_refused() == 0


def test_partitions_have_offsets_of_their_own() -> None:
    window = DedupWindow(1, 100)
    window.add(ids(1), partition=0, exposure_offset=5)
    window.add(ids(2), partition=1, exposure_offset=1, exposures_done=1)
    window.add(ids(3), partition=1, exposure_offset=90, exposures_done=80)
    assert known(window) == [1, 3]


def test_exposures_that_begin_anew_are_no_repetitions() -> None:
    window = DedupWindow(2, 100)
    window.add(ids(1, 2, 3), exposure_offset=1_000, exposures_done=990)
    assert window.add(ids(4, 5), exposure_offset=0, exposures_done=0).all()
    assert not window.add(ids(4, 5), exposure_offset=0, exposures_done=0).any()
    assert known(window) == [4, 5], "offsets of the old log hold nothing in the window"


def test_the_whole_uint64_range_is_remembered() -> None:
    window = DedupWindow(4, 4)
    extremes = ids(0, 2**63, 2**64 - 1)
    assert window.add(extremes).all()
    assert not window.add(extremes).any()
    assert known(window) == extremes.tolist()


class Joiner:
    """One request a step with 16 kept negatives at the end of its window; it dies now and then, and reads again what is not done."""

    def __init__(self, window_steps: int, horizon_steps: int) -> None:
        self.window_steps, self.horizon_steps = window_steps, horizon_steps

    def emitted(self, step: int) -> tuple[int, np.ndarray] | None:
        request = step - self.window_steps
        return None if request < 0 else (request, ids_of(f"r{request}", [str(item) for item in range(16)], 0))

    def done(self, step: int) -> int:
        return max(step - self.window_steps - self.horizon_steps, 0)


def learned_twice(window: DedupWindow, joiner: Joiner, *, num_steps: int, deaths: tuple[int, ...]) -> int:
    times: defaultdict[int, int] = defaultdict(int)
    largest = 0
    for step in range(num_steps):
        first = joiner.done(step) + joiner.window_steps if step in deaths else step
        for again in range(first, step + 1):
            found = joiner.emitted(again)
            if found is not None:
                request, sample_ids = found
                is_new = window.add(sample_ids, exposure_offset=request, exposures_done=joiner.done(step - 1))
                for one in sample_ids[is_new].tolist():
                    times[one] += 1
        largest = max(largest, len(window))
    assert largest <= 16 * (joiner.horizon_steps + 2)
    assert len(times) == 16 * (num_steps - joiner.window_steps)
    return sum(count - 1 for count in times.values())


def test_a_joiner_that_reads_its_whole_horizon_again_repeats_nothing_whatever_the_window_holds_at_least() -> None:
    """250 requests a second of 100 items in 1:100: more samples within the late horizon than the window holds at least."""
    joiner = Joiner(window_steps=150, horizon_steps=1_500)
    window = DedupWindow(20_000, BIG)
    assert 16 * joiner.horizon_steps > 20_000
    assert learned_twice(window, joiner, num_steps=3_300, deaths=(3_000, 3_200)) == 0
    assert window.take_refused() == 0


def test_a_window_that_is_too_small_refuses_what_it_cannot_tell_and_never_learns_twice() -> None:
    """Ten times as many ids may be repeated as it may hold."""
    window = DedupWindow(100, 1_000)
    for offset in range(1_000):
        assert window.add(ids(*range(10 * offset, 10 * offset + 10)), exposure_offset=offset).all()
        assert len(window) <= 1_000
    assert window.take_refused() == 0, "exposures newer than what was forgotten are learned"
    for offset in range(1_000):
        assert not window.add(ids(*range(10 * offset, 10 * offset + 10)), exposure_offset=offset).any()
    assert window.take_refused() == 9_000
    assert window.take_refused() == 0
    assert not window.add(ids(10**6), exposure_offset=899).any() and window.take_refused() == 1
    assert window.add(ids(10**6), exposure_offset=900).all()
    # Once those exposures are done, nothing is in doubt any more.
    assert window.add(ids(10**7), exposure_offset=1_000, exposures_done=1_000).all()


def random_calls(source: random.Random, count: int) -> list[tuple[np.ndarray, dict[str, int]]]:
    done, calls = [0, 0, 0], []
    for _ in range(count):
        partition = source.randrange(3)
        if source.random() < 0.3:
            done[partition] += source.randrange(4)
        if source.random() < 0.01:
            done[partition] = 0
        at = {"partition": partition, "exposure_offset": done[partition] + source.randrange(-3, 12), "exposures_done": done[partition]}
        if at["exposure_offset"] < 0 or source.random() < 0.05:
            at["exposure_offset"] = -1
        calls.append((ids(*(source.randrange(400) for _ in range(source.randrange(1, 9)))), at))
    return calls


@pytest.mark.parametrize("seed", range(5))
def test_a_restored_window_continues_like_the_original(seed: int) -> None:
    source = random.Random(seed)
    window = DedupWindow(20, 60)
    for sample_ids, at in random_calls(source, 300):
        window.add(sample_ids, **at)
    window.take_refused()
    arrays = window.to_arrays() | {"learner/steps": np.zeros(1, np.int64)}
    restored = DedupWindow.from_arrays(take_arrays(arrays), 20, 60)
    assert list(arrays) == ["learner/steps"]
    for sample_ids, at in random_calls(source, 300):
        assert (window.add(sample_ids, **at) == restored.add(sample_ids, **at)).all()
        assert len(window) == len(restored) <= 60
        assert window.take_refused() == restored.take_refused()


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_plain_model_over_random_calls(seed: int) -> None:
    """Without the upper bound: an id is remembered while its exposure is not done, and the oldest of a partition go first."""
    window = DedupWindow(20, BIG)
    held: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}
    last_done = [0, 0, 0]
    for sample_ids, at in random_calls(random.Random(seed), 500):
        partition, offset, done = at["partition"], at["exposure_offset"], at["exposures_done"]
        if done < last_done[partition]:
            held[partition] = [(one, -1) for one, _ in held[partition]]
        last_done[partition] = done
        expected = []
        for one in sample_ids.tolist():
            is_new = (offset == -1 or offset >= done) and all(one != each for queue in held.values() for each, _ in queue)
            expected.append(is_new)
            if is_new:
                held[partition].append((one, offset))
        queue = held[partition]
        while offset in (-1, *range(done, done + 100)) and queue and queue[0][1] < done and sum(map(len, held.values())) > 20:
            queue.pop(0)
        assert window.add(sample_ids, **at).tolist() == expected
        assert sorted(known(window)) == sorted(one for each in held.values() for one, _ in each)


def test_ids_of_a_checkpoint_from_before_offsets_were_known_count_and_go_first() -> None:
    window = DedupWindow.from_arrays({"dedup/sample_ids": ids(1, 2, 3)}, 3, 10)
    assert not window.add(ids(1, 2), exposure_offset=4).any()
    window.add(ids(7, 8), exposure_offset=5)
    assert known(window) == [3, 7, 8]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dedup/sample_ids": np.zeros(2, np.int64)}, "not uint64"),
        ({"dedup/sample_ids": ids(4, 4)}, "an id twice"),
        ({"dedup/exposure_offsets": np.zeros(3, np.int64)}, "does not fit 2 ids"),
        ({"dedup/partitions": np.zeros(2, np.float64)}, "float64"),
        ({"dedup/floors": np.zeros((2, 3), np.int64)}, "names a partition twice"),
        ({"dedup/floors": np.zeros((1, 2), np.int64)}, "does not fit"),
    ],
)
def test_arrays_that_describe_no_window_are_refused(changes: dict[str, np.ndarray], said: str) -> None:
    window = DedupWindow(10, 10)
    window.add(ids(1, 2), exposure_offset=4)
    with pytest.raises(ValueError, match=said):
        take_arrays({**window.to_arrays(), **changes})


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="window of 11 to 10"):
        DedupWindow(11, 10)
