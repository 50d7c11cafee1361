import numpy as np
import pytest

from services.trainer.dedup import DedupWindow


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_a_repeated_id_is_not_new() -> None:
    window = DedupWindow(10)
    assert window.add(ids(1, 2)).tolist() == [True, True]
    assert window.add(ids(2, 3)).tolist() == [False, True]


def test_of_two_equal_ids_in_one_call_only_the_first_is_new() -> None:
    assert DedupWindow(10).add(ids(5, 5, 6, 5)).tolist() == [True, False, True, False]


def test_the_oldest_ids_are_forgotten_first() -> None:
    window = DedupWindow(3)
    window.add(ids(1, 2, 3))
    window.add(ids(4))
    assert len(window) == 3
    assert window.to_array().tolist() == [2, 3, 4]
    assert window.add(ids(1)).tolist() == [True]


def test_the_whole_uint64_range_is_remembered() -> None:
    window = DedupWindow(4)
    extremes = ids(0, 2**63, 2**64 - 1)
    assert window.add(extremes).all()
    assert not window.add(extremes).any()
    assert (window.to_array() == extremes).all()


def test_a_restored_window_continues_like_the_original() -> None:
    random = np.random.default_rng(7)
    window = DedupWindow(50)
    window.add(random.integers(0, 100, 45).astype(np.uint64))
    for _ in range(40):
        window.add(random.integers(0, 200, 7).astype(np.uint64))
    restored = DedupWindow.from_array(window.to_array(), 50)
    for _ in range(60):
        batch = random.integers(0, 200, 9).astype(np.uint64)
        assert (window.add(batch) == restored.add(batch)).all()
        assert (window.to_array() == restored.to_array()).all()


def test_a_smaller_window_keeps_the_newest() -> None:
    assert DedupWindow.from_array(ids(1, 2, 3, 4), 2).to_array().tolist() == [3, 4]


def test_agrees_with_a_plain_model_over_random_calls() -> None:
    random = np.random.default_rng(11)
    window, order = DedupWindow(30), []
    for _ in range(300):
        batch = random.integers(0, 80, random.integers(1, 12)).astype(np.uint64)
        fresh = window.add(batch)
        for sample_id, is_new in zip(batch.tolist(), fresh.tolist(), strict=True):
            if is_new:
                order.append(sample_id)
        order = order[-30:]
        assert window.to_array().tolist() == order


def test_more_ids_at_once_than_the_window_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        DedupWindow(2).add(ids(1, 2, 3))
