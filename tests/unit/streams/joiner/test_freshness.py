import random

from streams.joiner.freshness import Freshness

ALLOWANCE = 300


def test_one_act_wants_a_tick_at_once_and_one_when_its_time_is_over_and_no_more() -> None:
    fresh = Freshness(ALLOWANCE)
    assert not fresh.wants_tick(10_000)
    fresh.joined(9_900)
    assert fresh.wants_tick(10_000)
    fresh.ticked(10_000)
    assert [fresh.wants_tick(now_ms) for now_ms in (10_001, 10_199, 10_200)] == [False, False, True]
    fresh.ticked(10_200)
    assert not fresh.wants_tick(10**12)


def test_an_old_act_wants_one_tick_which_says_all() -> None:
    fresh = Freshness(ALLOWANCE)
    fresh.joined(1_000)
    fresh.ticked(10_000)
    assert not fresh.wants_tick(10**12)


def test_an_act_from_a_clock_that_is_ahead_asks_for_no_more_than_others() -> None:
    fresh = Freshness(ALLOWANCE)
    fresh.joined(10**12)
    fresh.ticked(10_000)
    assert not fresh.wants_tick(10_299) and fresh.wants_tick(10_300)
    fresh.ticked(10_300)
    assert not fresh.wants_tick(10**11)


def test_ticks_are_at_most_two_an_act_and_the_watermark_passes_each_in_time() -> None:
    """Acts at random times, ticks whenever they are wanted, at multiples of 100 ms."""
    for seed in range(200):
        source = random.Random(seed)
        accepted = sorted(source.randrange(20_000) for _ in range(source.randrange(1, 60)))
        joined = sorted((at + source.randrange(300), at) for at in accepted)
        fresh, ticks = Freshness(ALLOWANCE), []
        for now_ms in range(0, 21_000, 100):
            while joined and joined[0][0] <= now_ms:
                fresh.joined(joined.pop(0)[1])
            if fresh.wants_tick(now_ms):
                fresh.ticked(now_ms)
                ticks.append(now_ms)
        assert len(ticks) <= 2 * len(accepted)
        for at in accepted:
            passed = next(tick for tick in ticks if tick - ALLOWANCE >= at)
            later = [other for other in accepted if at < other < passed]
            # On time, or with the last of those that came meanwhile.
            assert passed <= max([at, *later]) + ALLOWANCE + 100
