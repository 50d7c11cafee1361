"""The adaptive limit, simulated: a server that answers one request after another, callers that do not wait for each other.

`python -m tests.unit.services.router.test_admission` prints what services/README.md says of it (60 draws a case).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from services.common.platform.errors import Overloaded
from services.router.admission import Admission, AdmissionLimits, Entered

LIMITS = AdmissionLimits(least=16, most=1_000, latency_share=0.5)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Result:
    asked: int = 0
    good: int = 0
    late: int = 0
    refused: int = 0
    limits: list[int] = field(default_factory=list)


def simulate(
    *,
    rate: float,
    service_s: float,
    budget_s: float,
    seconds: float,
    seed: int,
    slow_from_s: float = 1e9,
    admits: bool = True,
    skip_s: float = 3.0,
) -> Result:
    """Poisson callers at `rate` a second before a FIFO server whose service times are exponential about `service_s`, twice as long from
    `slow_from_s` on. A request that is begun after its deadline is left out, as gRPC does; what is counted begins after `skip_s`."""
    draw, clock = random.Random(seed), Clock()
    admission = Admission(LIMITS, clock)
    waiting: deque[tuple[float, Entered | None]] = deque()
    events: list[tuple[float, int, str, float, Entered | None]] = [(draw.expovariate(rate), 0, "comes", 0.0, None)]
    number, is_busy, result = 0, False, Result()

    def begin() -> None:
        nonlocal is_busy, number
        while waiting:
            came_s, entered = waiting.popleft()
            if clock.now_s - came_s >= budget_s:
                end(came_s, entered, is_late=True)
                continue
            number += 1
            factor = 2.0 if clock.now_s >= slow_from_s else 1.0
            heapq.heappush(events, (clock.now_s + draw.expovariate(1.0 / (service_s * factor)), number, "done", came_s, entered))
            is_busy = True
            return
        is_busy = False

    def end(came_s: float, entered: Entered | None, *, is_late: bool) -> None:
        if entered is not None:
            admission.left(entered, is_answered=not is_late)
        if came_s >= skip_s:
            result.late += is_late
            result.good += not is_late

    while events and events[0][0] < seconds:
        clock.now_s, _, what, came_s, entered = heapq.heappop(events)
        if what == "comes":
            number += 1
            heapq.heappush(events, (clock.now_s + draw.expovariate(rate), number, "comes", 0.0, None))
            result.asked += clock.now_s >= skip_s
            result.limits.append(admission.limit)
            try:
                let_in = admission.enter(budget_s) if admits else None
            except Overloaded as refused:
                assert refused.retry_after_s is not None and 0.02 <= refused.retry_after_s <= 5.0
                result.refused += clock.now_s >= skip_s
                continue
            waiting.append((clock.now_s, let_in))
            if not is_busy:
                begin()
        else:
            end(came_s, entered, is_late=clock.now_s - came_s > budget_s)
            begin()
    return result


CASES = [(0.002, 0.1), (0.008, 0.5), (0.02, 1.0), (0.05, 2.0)]
"""(service_s, budget_s): capacities of 500, 125, 50 and 20 requests a second."""


@pytest.mark.parametrize(("service_s", "budget_s"), CASES)
def test_at_three_times_the_capacity_nine_tenths_of_it_are_answered_in_time(service_s: float, budget_s: float) -> None:
    """Without a limit nearly everybody is late: the queue is as long as the deadline."""
    seconds = 3.0 + 2_000 * service_s
    for seed in range(25):
        result = simulate(rate=3.0 / service_s, service_s=service_s, budget_s=budget_s, seconds=seconds, seed=seed)
        without = simulate(rate=3.0 / service_s, service_s=service_s, budget_s=budget_s, seconds=seconds, seed=seed, admits=False)
        capacity = (seconds - 3.0) / service_s
        assert result.good >= 0.9 * capacity, (seed, result.good, capacity, result.limits[-1])
        assert result.late <= 0.05 * result.good
        assert without.good < 0.5 * capacity


@pytest.mark.parametrize(("service_s", "budget_s"), CASES)
def test_below_seven_tenths_of_the_capacity_nobody_is_refused(service_s: float, budget_s: float) -> None:
    asked = refused = 0
    for seed in range(25):
        result = simulate(rate=0.7 / service_s, service_s=service_s, budget_s=budget_s, seconds=3.0 + 1_000 * service_s, seed=seed)
        asked, refused = asked + result.asked, refused + result.refused
    assert asked > 10_000 and refused <= 0.001 * asked, (refused, asked)


@pytest.mark.parametrize(("service_s", "budget_s"), CASES[:3])  # of the last, the 16 that are let in anyway fill the deadline
def test_a_server_that_becomes_half_as_fast_is_followed(service_s: float, budget_s: float) -> None:
    """From the middle on the same callers are 1.6 times the capacity; two seconds of deadlines later nine tenths of it are answered."""
    for seed in range(10):
        slow_from_s = 5.0
        begin_s = slow_from_s + 2 * budget_s
        seconds = begin_s + 2_000 * service_s
        result = simulate(
            rate=0.8 / service_s,
            service_s=service_s,
            budget_s=budget_s,
            seconds=seconds,
            seed=seed,
            slow_from_s=slow_from_s,
            skip_s=begin_s,
        )
        assert result.good >= 0.9 * (seconds - begin_s) / (2 * service_s), (seed, result.good)


def admission_at(latency_s: float, running: int) -> tuple[Admission, Clock]:
    """One whose answers took so long, with so many requests under way."""
    clock = Clock()
    admission = Admission(LIMITS, clock)
    for _ in range(200):
        entered = admission.enter(10.0)
        clock.now_s += latency_s
        admission.left(entered, is_answered=True)
    for _ in range(running):
        admission.enter(10.0)
    return admission, clock


def test_a_deadline_that_is_shorter_than_answers_take_is_refused_at_once_and_says_when_to_come_again() -> None:
    admission, _ = admission_at(0.4, running=20)
    with pytest.raises(Overloaded, match=r"answers take 400 ms at the moment, and this request has 100; come again in 400 ms") as refused:
        admission.enter(0.1)
    assert refused.value.retry_after_s == pytest.approx(0.4)
    admission.enter(1.0)


def test_the_least_number_is_let_in_whatever_answers_take() -> None:
    admission, _ = admission_at(5.0, running=LIMITS.least - 1)
    admission.enter(0.1)
    with pytest.raises(Overloaded):
        admission.enter(0.1)


def test_requests_that_failed_for_another_reason_teach_nothing() -> None:
    admission, clock = admission_at(0.01, running=0)
    before = admission.limit
    for _ in range(1_000):
        entered = admission.enter(1.0)
        clock.now_s += 0.7
        admission.left(entered, is_answered=False)
    assert (admission.limit, admission.running) == (before, 0)


def test_ten_thousand_times_the_limit_keep_nothing() -> None:
    admission, _ = admission_at(0.01, running=LIMITS.least)
    refusals = 0
    for _ in range(10 * LIMITS.most):
        try:
            admission.enter(10.0)
        except Overloaded:
            refusals += 1
    assert admission.running == admission.limit <= LIMITS.most
    assert refusals == 10 * LIMITS.most - (admission.running - LIMITS.least)


def report(num_draws: int = 60) -> None:
    refused = asked = 0
    for service_s, budget_s in CASES:
        seconds, capacity = 3.0 + 2_000 * service_s, 2_000
        shares: dict[bool, list[float]] = {True: [], False: []}
        for seed in range(num_draws):
            for admits, found in shares.items():
                over = simulate(rate=3.0 / service_s, service_s=service_s, budget_s=budget_s, seconds=seconds, seed=seed, admits=admits)
                found.append(over.good / capacity)
            below = simulate(rate=0.7 / service_s, service_s=service_s, budget_s=budget_s, seconds=3.0 + 1_000 * service_s, seed=seed)
            refused, asked = refused + below.refused, asked + below.asked
        least, middle, without = min(shares[True]), sorted(shares[True])[num_draws // 2], sorted(shares[False])[num_draws // 2]
        print(f"{1 / service_s:.0f} a second: in time {least:.3f} at least, {middle:.3f} in the middle; without a limit {without:.3f}")
    print(f"at 0.7 of the capacity {refused} of {asked} are refused")


if __name__ == "__main__":
    report()
