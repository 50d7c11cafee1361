from __future__ import annotations

import pytest

from services.trainer.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (725, "12 min 5 s"),
        (3_600, "1 h 0 min"),
        (12_059, "3 h 20 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_says_share_rate_and_time_left_and_comes_now_and_then() -> None:
    now, said = [0.0], []
    progress = Progress("pass 1/1", 10_000, clock=lambda: now[0], say=said.append, every_s=30)
    for second in range(1, 65):
        now[0] = float(second)
        progress.at(100 * second)
    assert said == [
        "pass 1/1: 3,000 of 10,000 events (30.0%), 100 events/s, 1 min 10 s left",
        "pass 1/1: 6,000 of 10,000 events (60.0%), 100 events/s, 40 s left",
    ]


def test_what_was_learned_before_is_no_part_of_the_rate() -> None:
    now, said = [0.0], []
    progress = Progress("pass 2/3", 10_000, done=5_000, clock=lambda: now[0], say=said.append, every_s=30)
    now[0] = 30.0
    progress.at(5_000)
    now[0] = 60.0
    progress.at(8_000)
    assert said == [
        "pass 2/3: 5,000 of 10,000 events (50.0%), 0 events/s",
        "pass 2/3: 8,000 of 10,000 events (80.0%), 50 events/s, 40 s left",
    ]
