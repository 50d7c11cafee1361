import itertools
import random

from services.trainer.publish_pace import PublishPace


def test_news_waits_for_the_gap_and_nothing_for_the_interval() -> None:
    pace = PublishPace(interval_s=1.0, gap_s=0.2)
    pace.begin(10.0)
    assert round(pace.wait_s(10.05, has_news=True), 6) == 0.15
    assert round(pace.wait_s(10.05, has_news=False), 6) == 0.95
    assert pace.wait_s(10.2, has_news=True) == pace.wait_s(11.3, has_news=False) == 0.0


def test_a_delta_that_takes_long_to_make_is_not_followed_by_another_before_ten_times_that() -> None:
    pace = PublishPace(interval_s=1.0, gap_s=0.2)
    pace.published(10.0, 0.05)
    assert round(pace.wait_s(10.2, has_news=True), 6) == 0.3
    pace.published(10.0, 5.0)
    assert round(pace.wait_s(10.2, has_news=True), 6) == 0.8, "but at the interval"


def test_a_gap_above_the_interval_is_the_interval() -> None:
    pace = PublishPace(interval_s=0.1, gap_s=0.2)
    pace.begin(0.0)
    assert round(pace.wait_s(0.05, has_news=True), 6) == round(pace.wait_s(0.05, has_news=False), 6) == 0.05


def test_the_share_of_time_spent_on_deltas_is_bounded_whatever_they_cost() -> None:
    """Always news: early deltas take a tenth of the time, and one an interval is made in any case."""
    for seed in range(50):
        source = random.Random(seed)
        pace, now, spent, deltas = PublishPace(interval_s=1.0, gap_s=0.2), 0.0, 0.0, []
        pace.begin(now)
        while now < 300.0:
            now += pace.wait_s(now, has_news=True) + 1e-6
            took = source.choice([0.001, 0.01, 0.04, 0.09])
            spent += took
            deltas.append(now)
            pace.published(now, took)
            now += took
        assert spent <= 0.11 * now
        assert len(deltas) <= 5 * now + 1
        assert max(later - earlier for earlier, later in itertools.pairwise(deltas)) <= 1.1
