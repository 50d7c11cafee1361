import itertools

import pytest

from loadtests.load.arrivals import Arrivals, Stage


def test_an_even_schedule_has_one_arrival_every_gap_from_the_start():
    assert list(Arrivals((Stage(4.0, 1.0),)).offsets()) == [0.0, 0.25, 0.5, 0.75]


def test_stages_follow_each_other_and_lose_no_arrival():
    offsets = list(Arrivals((Stage(1.5, 1.0), Stage(0.0, 2.0), Stage(3.0, 1.0))).offsets())
    assert len(offsets) == 5
    assert offsets[:2] == pytest.approx([0.0, 2 / 3])
    # Half a gap of the first stage is left over; the pause adds nothing to it.
    assert offsets[2:] == pytest.approx([3.0 + 0.5 / 3, 3.0 + 1.5 / 3, 3.0 + 2.5 / 3])


def test_a_poisson_schedule_is_the_same_for_the_same_seed_and_has_the_rate_and_the_spread_of_one():
    plan = Arrivals((Stage(50.0, 100.0),), "poisson", seed=3)
    offsets = list(plan.offsets())
    assert offsets == list(plan.offsets())
    assert offsets != list(Arrivals((Stage(50.0, 100.0),), "poisson", seed=4).offsets())
    assert offsets == sorted(offsets)
    assert 4700 < len(offsets) < 5300
    gaps = [later - earlier for earlier, later in itertools.pairwise(offsets)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)


def test_a_plain_rate_lasts_as_long_as_is_said_and_stages_as_long_as_they_say():
    assert Arrivals.parse("20", seconds=60).stages == (Stage(20.0, 60.0),)
    plan = Arrivals.parse("10x30, 40x15", seconds=60)
    assert plan.stages == (Stage(10.0, 30.0), Stage(40.0, 15.0))
    assert plan.duration_s == 45.0
    assert plan.expected == 900.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [("fast", "use RATE"), ("-1", "not within 0 to 10,000"), ("nan", "not within"), ("1x0", "not within"), ("", "use RATE")],
)
def test_a_wrong_schedule_is_refused_with_its_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        Arrivals.parse(text, seconds=5)
