import os
import random

import pytest

from loadtests.soak.report import Series, judge, tolerance_of
from loadtests.soak.sampling import usage_of
from loadtests.soak.trend import trend_of

TIMES = [5.0 * number for number in range(120)]


def noisy(slope_per_s: float, *, start: float = 300.0, noise: float = 2.0, seed: int = 1) -> list[float]:
    source = random.Random(seed)
    return [start + slope_per_s * at + source.gauss(0, noise) for at in TIMES]


def test_a_leak_is_found_in_noise_and_its_slope_lies_in_the_interval():
    trend = trend_of(TIMES, noisy(0.05), tolerance=9.0)
    assert trend.grows
    assert trend.low_per_s <= 0.05 <= trend.high_per_s
    assert trend.growth == pytest.approx(0.05 * TIMES[-1], rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_does_not_count_as_growth(seed):
    assert not trend_of(TIMES, noisy(0.0, seed=seed), tolerance=4.0).grows


def test_falling_values_do_not_grow():
    assert not trend_of(TIMES, noisy(-0.05), tolerance=4.0).grows


def test_growth_within_the_tolerance_does_not_count():
    trend = trend_of(TIMES, noisy(0.005, noise=0.01), tolerance=4.0)
    assert trend.low_per_s > 0
    assert not trend.grows


def test_a_quarter_of_spikes_changes_nothing():
    values = [value + (400.0 if number % 4 == 0 else 0.0) for number, value in enumerate(noisy(0.0))]
    assert not trend_of(TIMES, values, tolerance=4.0).grows


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="7 samples are too few"):
        trend_of(TIMES[:7], TIMES[:7], tolerance=1.0)


def test_what_happens_in_the_warm_up_is_not_judged():
    filling = [300.0 + min(at, 240.0) for at in TIMES]
    (cold,) = judge([Series("router", "rss_mib", tuple(TIMES), tuple(filling))], warm_up_s=0.0, records_per_s=20)
    (warm,) = judge([Series("router", "rss_mib", tuple(TIMES), tuple(filling))], warm_up_s=240.0, records_per_s=20)
    assert not cold.is_good
    assert warm.is_good


def test_a_broker_in_memory_may_grow_and_any_other_service_may_not():
    leaking = tuple(noisy(0.5))
    verdicts = judge([Series(name, "rss_mib", tuple(TIMES), leaking) for name in ("tansu", "router")], warm_up_s=0.0, records_per_s=20)
    assert {verdict.service: (verdict.trend.grows, verdict.is_good) for verdict in verdicts} == {
        "tansu": (True, True),
        "router": (True, False),
    }


def test_four_more_file_descriptors_are_a_leak_and_one_is_not():
    for more, grows in ((1, False), (4, True)):
        values = tuple(50.0 + round(more * number / len(TIMES)) for number in range(len(TIMES)))
        (verdict,) = judge([Series("router", "fds", tuple(TIMES), values)], warm_up_s=0.0, records_per_s=20)
        assert verdict.trend.grows is grows


def test_a_series_that_is_too_short_after_the_warm_up_has_no_verdict():
    assert judge([Series("router", "fds", (1.0, 2.0), (5.0, 5.0))], warm_up_s=0.0, records_per_s=20) == []


def test_the_tolerance_of_lag_follows_the_load():
    assert tolerance_of("lag", [1.0], records_per_s=20) == 40.0


def test_the_usage_of_a_process_is_read_and_of_a_process_that_is_gone_it_is_none():
    usage = usage_of(os.getpid())
    assert usage is not None
    assert usage.rss_mib > 10 and usage.fds > 2 and usage.threads >= 1
    assert usage_of(2**22 + 1) is None
