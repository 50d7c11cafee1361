import numpy as np
import pytest

from services.trainer.publish_gate import PublishGateLimits, refusal

LIMITS = PublishGateLimits(max_row_norm=10.0, max_dense_norm=100.0)
SOUND_ROWS = np.ones((3, 4), np.float32)
SOUND_DENSE = np.ones((5, 5), np.float32)


def test_sound_weights_pass() -> None:
    assert refusal({"user": SOUND_ROWS, "item": np.empty((0, 4), np.float32)}, {"w": SOUND_DENSE}, LIMITS) == ""


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_refused_by_table(poison: float) -> None:
    rows = SOUND_ROWS.copy()
    rows[1, 2] = poison
    assert refusal({"user": rows}, {}, LIMITS) == "table 'user': 1 of 3 rows hold NaN or infinity"


def test_a_row_above_the_norm_is_refused() -> None:
    assert "table 'item': a row has norm 20, above the limit of 10" in refusal({"item": SOUND_ROWS * 10}, {}, LIMITS)


def test_dense_weights_are_refused_by_name() -> None:
    poisoned = SOUND_DENSE.copy()
    poisoned[0, 0] = np.nan
    assert refusal({}, {"head.bias": poisoned}, LIMITS) == "dense weight 'head.bias' holds NaN or infinity"
    assert "dense weight 'head.bias' has norm 500" in refusal({}, {"head.bias": SOUND_DENSE * 100}, LIMITS)


def test_large_finite_values_do_not_overflow_into_a_pass() -> None:
    assert "has norm" in refusal({"user": np.full((1, 4), 3e38, np.float32)}, {}, LIMITS)
