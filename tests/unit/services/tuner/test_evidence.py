import math

import numpy as np
import pytest

from services.tuner.evidence import log_e_value, more_needed

SHOWN = math.log(20)


def test_no_question_is_no_evidence():
    assert log_e_value(np.array([]), -0.95) == pytest.approx(0.0)
    assert more_needed(np.array([]), -0.95, SHOWN) is None


def test_evidence_does_not_depend_on_the_order_of_the_questions():
    z = np.random.default_rng(1).choice([-0.95, 0.05, 1.05], 300, p=[0.1, 0.7, 0.2])
    assert log_e_value(z, -0.95) == pytest.approx(log_e_value(np.sort(z), -0.95)) == pytest.approx(log_e_value(z[::-1], -0.95))


def test_it_grows_with_questions_that_speak_for_the_claim_and_falls_with_those_against():
    assert log_e_value(np.full(200, 0.05), -0.95) > SHOWN > log_e_value(np.full(40, 0.05), -0.95)
    assert log_e_value(np.full(200, -0.05), -0.95) < 0
    assert more_needed(np.full(50, -0.05), -0.95, SHOWN) is None
    assert more_needed(np.full(200, 0.05), -0.95, SHOWN) == 0


def test_the_worst_question_costs_nearly_all_and_never_more():
    assert math.isfinite(log_e_value(np.full(1_000, -0.95), -0.95))


@pytest.mark.parametrize("spread", [0.05, 0.3, 0.6])
def test_what_is_false_is_shown_in_less_than_one_case_of_twenty_however_often_one_looks(spread):
    rng = np.random.default_rng(7)
    shown = 0
    for _ in range(400):
        # The mean of z is exactly 0: the claim just does not hold.
        chance = np.array([spread / 2 + 0.025, spread / 2 - 0.025 if spread > 0.05 else 0.0])
        z = rng.choice([-1.0, 1.0, 0.0], 600, p=[*chance, 1 - chance.sum()]) + (chance[0] - chance[1])
        lowest = -1.0 + (chance[0] - chance[1])
        looks = (32, 48, 72, 108, 162, 243, 364, 546, 600)
        shown += any(log_e_value(z[:size], lowest) >= SHOWN for size in looks)
    assert shown <= 34  # 5 % of 400 are 20; more than 34 in one of a thousand such tests


def test_the_number_of_further_questions_is_right_when_they_are_like_the_first():
    rng = np.random.default_rng(3)
    z = rng.choice([-0.95, 0.05, 1.05], 2_000, p=[0.05, 0.9, 0.05])
    more = more_needed(z[:100], -0.95, SHOWN)
    assert more is not None
    repeated = np.resize(z[:100], 100 + more)
    assert log_e_value(repeated, -0.95) >= SHOWN - 0.5
