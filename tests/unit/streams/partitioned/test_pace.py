import itertools
import random

import pytest

from streams.partitioned.pace import TickPace

INTERVAL, GAP, BATCH = 500, 100, 16


def test_without_a_wish_ticks_come_at_multiples_of_the_interval() -> None:
    pace, ticks = TickPace(INTERVAL, GAP), []
    now_ms = 1_234
    while now_ms < 10_000:
        now_ms += pace.pause_ms(now_ms)
        if pace.is_due(now_ms, is_wanted=False, num_records=2):
            ticks.append(now_ms)
            pace.ticked(now_ms, 1.0)
    assert ticks[1:] == list(range(1_501, 10_002, INTERVAL))


def test_a_gap_is_never_longer_than_the_interval() -> None:
    assert TickPace(interval_ms=20, gap_ms=100).gap_ms == 20


def test_a_timer_that_fires_early_or_late_repeats_no_number_and_skips_no_gap() -> None:
    source = random.Random(1)
    pace, ticks = TickPace(INTERVAL, GAP), []
    now_ms = 10_000
    while now_ms < 60_000:
        now_ms += pace.pause_ms(now_ms) + source.choice([-1, 0, 0, 3, 40])
        if pace.is_due(now_ms, is_wanted=True, num_records=2):
            ticks.append(now_ms // GAP)
            pace.ticked(now_ms, 1.0)
    assert {later - earlier for earlier, later in itertools.pairwise(ticks)} == {1}


def test_a_tick_that_takes_long_takes_a_tenth_of_the_time() -> None:
    pace = TickPace(10_000, GAP)
    pace.ticked(10_000, 35.0)
    assert [pace.is_due(now_ms, is_wanted=True, num_records=2) for now_ms in (10_101, 10_301, 10_401)] == [False, False, True]


def test_a_clock_that_is_put_back_stops_no_ticks() -> None:
    pace = TickPace(INTERVAL, GAP)
    pace.ticked(10_000_000, 1.0)
    assert pace.is_due(5_000_001, is_wanted=False, num_records=0)


def played(per_second: float, *, num_partitions: int = 2, gap_ms: int = GAP, seed: int = 0) -> tuple[list[int], int]:
    """Return the groups of each tick of a minute of traffic, two groups an event, and the micro-batches that they make."""
    source = random.Random(seed)
    times = sorted(source.uniform(1_000, 61_000) for _ in range(round(60 * per_second)))
    pace, found, num_groups, at, now_ms = TickPace(INTERVAL, gap_ms), [], 0, 0, 1_000
    while now_ms < 61_000:
        now_ms += pace.pause_ms(now_ms)
        while at < len(times) and times[at] <= now_ms:
            at += 1
            num_groups += 2
        if pace.is_due(now_ms, is_wanted=num_groups > 0, num_records=num_groups + num_partitions):
            found.append(num_groups)
            num_groups = 0
            pace.ticked(now_ms, 1.0)
    return found, sum(-(-groups // BATCH) for groups in found)


@pytest.mark.parametrize(("per_second", "at_most"), [(100, 1.05), (200, 1.01), (1_000, 1.01)])
def test_with_many_events_there_are_no_more_micro_batches_than_by_the_clock_alone(per_second: float, at_most: float) -> None:
    for seed in range(5):
        _, batches = played(per_second, seed=seed)
        _, by_the_clock = played(per_second, seed=seed, gap_ms=INTERVAL)
        assert batches <= at_most * by_the_clock


@pytest.mark.parametrize("per_second", [0.5, 3, 10, 30, 60, 80])
def test_with_few_events_ticks_come_sooner_and_there_are_at_most_eight_more_micro_batches_a_second(per_second: float) -> None:
    ticks, batches = played(per_second)
    assert batches <= played(per_second, gap_ms=INTERVAL)[1] + 60 * 8
    assert 60 * 2 <= len(ticks) <= 60 * 10 + 1


def test_a_worker_with_many_partitions_ticks_at_the_interval() -> None:
    assert len(played(5, num_partitions=100)[0]) <= 60 * 2 + 1
    assert len(played(5, num_partitions=10)[0]) > 60 * 4
