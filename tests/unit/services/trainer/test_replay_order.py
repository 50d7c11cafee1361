"""The order in which a history is learned, where it is cut, and what a request of its time knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from services.common.ranker import exposure_block
from services.common.ranker.states import Interaction
from services.trainer import replay_order
from services.trainer.batch import FeatureStates, replay
from services.trainer.event_files.history import coarse_cut, cut_by_time
from services.trainer.replay_order import BatchConfig, Behind, ReplayOrder, blocks, is_coarse, order_remarks, sessions_in_a_row
from tests.learning import CATEGORIES, ITEMS, SPEC

DAY_MS = 86_400_000


def act(user_id: str, time_ms: int, item_id: str = "1") -> Interaction:
    return Interaction(user_id, item_id, "rating", 5.0, time_ms)


def by_date(days: int, of_day: int, *, num_users: int = 5) -> list[Interaction]:
    """Return acts of which only the date is known, users mixed."""
    rng = np.random.default_rng(0)
    return [act(f"u{rng.integers(num_users)}", day * DAY_MS, str(rng.integers(150))) for day in range(1, days + 1) for _ in range(of_day)]


def features(acts: Sequence[Interaction]) -> dict[tuple[str, int, str], bytes]:
    """Return the features of each act by user, time and item."""
    config, states = BatchConfig(), FeatureStates(SPEC, CATEGORIES)
    placed = ReplayOrder(acts, config)
    groups = replay(SPEC, placed, ITEMS, states, config, 0)
    return {
        (one.interaction.user_id, one.interaction.time_ms, one.interaction.item_id): exposure_block.select(group.features_block, [0])
        for one, group in zip(placed, groups, strict=True)
    }


def test_the_order_is_that_of_time_unless_sessions_are_overlaid() -> None:
    acts = [act(f"u{place % 3}", place * 1000) for place in range(40)]
    assert [one.interaction for one in ReplayOrder(acts, BatchConfig())] == acts
    sitting = [act(f"u{place // 10}", place * 1000) for place in range(40)]
    assert [one.interaction for one in ReplayOrder(sitting, BatchConfig(active_users=4))] != sitting


def test_a_users_events_of_one_second_are_one_block_wherever_they_stand_in_it() -> None:
    acts = [act("a", 5_000), act("b", 5_300), act("a", 5_900), act("a", 6_000), act("b", 6_000), act("a", 6_999)]
    found = [[(one.user_id, one.time_ms) for one in block] for block in blocks(ReplayOrder(acts, BatchConfig()))]
    assert found == [
        [("a", 5_000), ("a", 5_900)],
        [("b", 5_300)],
        [("a", 6_000), ("a", 6_999)],
        [("b", 6_000)],
    ]


def test_where_only_dates_are_known_a_day_is_predicted_from_the_days_before() -> None:
    acts = by_date(4, 60)
    whole = features(acts)
    for day in (2, 3, 4):
        before = [one for one in acts if one.time_ms < day * DAY_MS]
        ones_own_day = [one for one in acts if one.time_ms == day * DAY_MS and one.user_id == "u0"]
        alone = features([*before, *ones_own_day])
        for one in ones_own_day:
            key = (one.user_id, one.time_ms, one.item_id)
            assert whole[key] == alone[key], "what others did on that day tells nothing"


def test_an_event_is_known_to_requests_from_the_lag_on() -> None:
    behind = Behind(BatchConfig(feature_lag_s=1.5))
    first, second = act("a", 10_000), act("b", 10_400)
    behind.add([first])
    behind.add([second])
    assert list(behind.known_at(11_499)) == []
    assert list(behind.known_at(11_500)) == [first]
    assert list(behind.known_at(11_500)) == []
    assert list(behind.known_at(DAY_MS)) == [second]
    behind.add([first, second])
    assert list(behind.rest()) == [first, second] and list(behind.rest()) == []


def test_of_overlaid_sessions_the_lag_is_in_events() -> None:
    behind = Behind(BatchConfig(active_users=10, feature_lag_events=2))
    acts = [act("a", place) for place in range(5)]
    behind.add(acts)
    assert list(behind.known_at(0)) == acts[:3]
    assert list(behind.known_at(DAY_MS)) == []


def test_what_is_held_back_and_what_is_read_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_order, "MOST_TOGETHER", 20)
    acts, behind, held, most = [act(f"u{place % 7}", DAY_MS, str(place % 150)) for place in range(200)], Behind(BatchConfig()), 0, 0
    found = list(blocks(ReplayOrder(acts, BatchConfig())))
    assert sorted(one.item_id for block in found for one in block) == sorted(one.item_id for one in acts)
    assert max(map(len, found)) == 3, "7 users share 20 events"
    for block in found:
        held -= len(list(behind.known_at(block[0].time_ms)))
        behind.add(block)
        held += len(block)
        most = max(most, held)
    assert most <= 20 + 3


@pytest.mark.parametrize("fraction", [0.1, 0.35, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_a_cut_splits_no_second(fraction: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times_ms = np.sort(rng.integers(0, 40, 200) * 1000 + rng.integers(0, 1000, 200)).tolist()
    acts = [act(f"u{rng.integers(9)}", time_ms) for time_ms in times_ms]
    cut = cut_by_time(acts, fraction)
    assert 0 < cut < 200 and acts[cut - 1].time_ms // 1000 < acts[cut].time_ms // 1000
    assert abs(cut - 200 * fraction) <= 15, "the nearer end of a second of about five events"


def test_a_cut_by_dates_is_at_the_nearer_end_of_the_day() -> None:
    acts = by_date(3, 100)
    cuts = {fraction: cut_by_time(acts, fraction) for fraction in (0.0, 0.1, 0.49, 0.51, 0.6, 0.9, 1.0)}
    assert cuts == {0.0: 0, 0.1: 100, 0.49: 100, 0.51: 200, 0.6: 200, 0.9: 200, 1.0: 300}
    assert cut_by_time(by_date(1, 100), 0.9) == 100, "one day has no earlier part"
    assert cut_by_time([], 0.9) == 0


def test_a_cut_that_is_far_from_what_was_asked_for_is_said() -> None:
    assert coarse_cut(1_000, 0.9, 880) == coarse_cut(1_000, 0.9, 900) == coarse_cut(1_000, 0.9, 949) == coarse_cut(3, 0.5, 1) == ""
    for cut in (500, 960, 1_000):
        assert f"cut at {cut:,} of 1,000 events instead of 900" in coarse_cut(1_000, 0.9, cut)


@pytest.mark.parametrize(
    ("acts", "coarse"),
    [
        ([], False),
        ([act("a", 0)], False),
        (by_date(2, 3_000), True),
        (by_date(1, 50), True),
        (by_date(60, 50), False),
        ([act(f"u{place % 9}", place * 20) for place in range(5_000)], False),
    ],
)
def test_times_that_tell_little_are_said(acts: list[Interaction], coarse: bool) -> None:
    assert is_coarse(acts) == coarse
    assert any("share their second" in line for line in order_remarks(acts, BatchConfig())) == coarse
    assert not [*order_remarks(acts, BatchConfig(active_users=5))]


def test_sessions_one_after_the_other_are_said() -> None:
    rng = np.random.default_rng(0)
    sitting = [act(f"u{place // 50}", place * 2_000) for place in range(5_000)]
    busy = [act(f"u{rng.integers(40)}", place * 2_000) for place in range(5_000)]
    assert sessions_in_a_row(sitting) == pytest.approx(0.98, abs=0.01)
    assert sessions_in_a_row(busy) == pytest.approx(1 / 40, abs=0.02)
    shown = [act(f"u{place // 20 % 30}", place // 20 * 1_000, str(place % 20)) for place in range(5_000)]
    assert sessions_in_a_row(shown) == 0.0, "the rows of one request are one block"
    assert sessions_in_a_row(sitting[:30]) is None and sessions_in_a_row([]) is None
    (line,) = order_remarks(sitting, BatchConfig())
    assert line.startswith("98% of requests follow one of the same user") and "--active-users 100" in line
    assert not [*order_remarks(busy, BatchConfig())] and not [*order_remarks(sitting, BatchConfig(active_users=100))]
