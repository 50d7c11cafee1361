"""What a tick of the joiner says, what may be committed, and what is kept in memory meanwhile."""

import random
from collections import Counter

import pytest

from services.common.events import dead_letter_reasons
from streams.joiner.model import Resume
from streams.partitioned.records import DeadLetter, Forward
from tests.unit.streams.joiner.bench import CONFIG, HORIZON, T0, WINDOW, Bench, only
from tests.unit.streams.partitioned.test_intake import ALLOWANCE


def test_feedback_without_end_about_one_request_is_kept_within_the_memory() -> None:
    bench = Bench(max_pending_bytes=20_000)
    bench.expose("r1")
    bench.expose("r2")
    for number in range(300):
        bench.answer(f"i{number % 12}", request_id="r2")
        assert bench.intake.pending_bytes <= 20_000
    assert bench.counts["retired_early"] == 2


def test_misplaced_feedback_that_was_forwarded_before_a_restart_is_not_forwarded_again() -> None:
    bench = Bench(resume=Resume(feedback_position=1))
    assert bench.answer(user_id="elsewhere") == []
    assert isinstance(only(bench.answer(user_id="elsewhere")), Forward)
    assert (bench.counts["known_before_restart"], bench.counts["forwarded"]) == (1, 1)


def test_the_watermark_of_a_tick_follows_the_wall_clock_when_all_is_read() -> None:
    cut = Bench().tick(at=1_000).cut
    assert (cut.tick, cut.watermark_ms) == (T0 + 1_000, T0 + 1_000 - ALLOWANCE)


def test_a_tick_is_numbered_by_the_last_whole_gap() -> None:
    bench = Bench()
    assert [bench.tick(at=at).cut.tick - T0 for at in (1, 499, 500, 999, 1_003)] == [0, 0, 500, 500, 1_000]


def test_a_tick_is_wanted_behind_a_sample_and_again_when_the_watermark_may_pass_it() -> None:
    bench = Bench()
    bench.expose()
    assert not bench.joiner.freshness.wants_tick(T0 + 10_000)
    bench.answer(at=1_000)
    assert bench.joiner.freshness.wants_tick(T0 + 1_050)
    assert bench.tick(at=1_050).cut.watermark_ms < T0 + 1_000
    wanted = [at for at in range(1_050, 2_000, 10) if bench.joiner.freshness.wants_tick(T0 + at)]
    assert wanted[0] == 1_000 + ALLOWANCE
    assert bench.tick(at=wanted[0]).cut.watermark_ms == T0 + 1_000
    assert not bench.joiner.freshness.wants_tick(T0 + 20_000)


def test_what_is_set_aside_or_waits_wants_no_tick() -> None:
    bench = Bench()
    bench.expose()
    bench.answer("never shown")
    bench.answer(request_id="unknown")
    bench.see("i3")
    assert not bench.joiner.freshness.wants_tick(T0 + 10_000)


def test_the_watermark_of_a_tick_waits_for_feedback_whose_exposure_may_still_be_unread() -> None:
    bench = Bench()
    bench.answer(at=1_000)
    bench.answer(at=4_000, request_id="r2")
    bench.expose("r2", at=900 + ALLOWANCE)
    unread = (bench.exposures + 1, bench.feedback)
    assert bench.joiner.on_tick(T0 + 5_000, unread)[1].watermark_ms == T0 + 999
    bench.expose("r3", at=1_000 + ALLOWANCE)
    unread = (bench.exposures + 1, bench.feedback)
    # The exposures have been read up to the time of the feedback: its own is late, or will never come.
    assert bench.joiner.on_tick(T0 + 5_000, unread)[1].watermark_ms == T0 + 5_000 - ALLOWANCE
    assert bench.tick(at=5_000).cut.feedback_position == 0  # but it is not done, and is read again after a death
    assert len(bench.expose("r1")) == 1


@pytest.mark.parametrize(("orphans", "clock_ms"), [(0.01, 1), (0.1, 1), (1.0, 1), (0.01, 250)])
def test_orphans_do_not_hold_the_watermark(orphans: float, clock_ms: int) -> None:
    """Forty seconds of 50 acts a second. `clock_ms` is the grain of the clock that stamps the acts."""
    random_ = random.Random(7)
    bench = Bench()
    ages, letters, num_orphans = [], 0, 0
    for at in range(0, 40_000, 20):
        stamp = at // clock_ms * clock_ms
        if random_.random() < orphans:
            num_orphans += 1
            bench.answer(request_id=f"unknown {at}", at=stamp)
        else:
            bench.expose(f"r{at}", at=stamp - 5)
            bench.answer(request_id=f"r{at}", at=stamp)
        if at % 500 == 0:
            outcome = bench.tick(at=at)
            ages.append(T0 + at - outcome.cut.watermark_ms)
            letters += sum(isinstance(emission, DeadLetter) for emission in outcome.emissions)
    assert max(ages) + CONFIG.tick_gap_ms <= 2_000
    for at in (40_000, 40_000 + 2 * WINDOW):
        letters += sum(isinstance(emission, DeadLetter) for emission in bench.tick(at=at).emissions)
    assert letters == num_orphans > 10


def test_the_watermark_of_a_tick_stays_behind_unread_feedback() -> None:
    bench = Bench()
    bench.expose()
    bench.answer(at=2_000)
    assert bench.tick(at=60_000, read_to_end=False).cut.watermark_ms == T0 + 2_000 - ALLOWANCE


def test_the_watermark_never_goes_back_even_over_a_restart() -> None:
    bench = Bench(resume=Resume(watermark_ms=T0 + 7_000))
    assert bench.tick(at=0).cut.watermark_ms == T0 + 7_000
    assert bench.tick(at=60_000).cut.watermark_ms == T0 + 60_000 - ALLOWANCE


def test_offsets_are_held_until_the_request_is_retired() -> None:
    bench = Bench()
    bench.expose("r1")
    bench.expose("r2", at=5_000)
    bench.answer(request_id="r1", at=1_000)
    bench.answer(request_id="r2", at=6_000)
    end_1, end_2 = WINDOW + HORIZON + ALLOWANCE, WINDOW + HORIZON + ALLOWANCE + 5_000
    cut = bench.tick(at=end_1 - 1).cut
    assert (cut.exposures_committable, cut.feedback_committable, cut.feedback_position) == (0, 0, 2)
    cut = bench.tick(at=end_1).cut
    assert (cut.exposures_committable, cut.feedback_committable, cut.feedback_position) == (1, 1, 2)
    cut = bench.tick(at=end_2).cut
    assert (cut.exposures_committable, cut.feedback_committable) == (2, 2)


def test_feedback_that_is_done_is_no_orphan_when_it_is_read_again() -> None:
    # r1 was retired and committed; the feedback log is held at 0 by r2, so r1's feedback is read again without its exposure.
    bench = Bench(starts=(1, 0), resume=Resume(feedback_position=2))
    bench.answer(request_id="r1")
    bench.answer(request_id="r2")
    bench.answer(request_id="never seen")
    bench.expose("r2")
    bench.tick(at=0)
    letters = [letter for letter in bench.tick(at=5 * WINDOW).emissions if isinstance(letter, DeadLetter)]
    assert [letter.feedback_id for letter in letters] == ["f2"]
    assert bench.counts["known_before_restart"] == 1


def test_exposures_that_the_last_tick_calls_done_are_passed_over_though_they_were_not_committed() -> None:
    bench = Bench(resume=Resume(feedback_position=1, exposures_position=1))
    bench.expose("r1")
    bench.answer(request_id="r1")
    bench.expose("r2")
    emissions = bench.tick(at=5 * WINDOW).emissions
    assert [(group.exposure.request_id, group.exposure_offset) for group in emissions] == [("r2", 1)]
    assert bench.tick(at=5 * WINDOW).cut.exposures_committable == 1


def test_a_repeated_exposure_is_read_again_only_with_its_first_copy() -> None:
    bench = Bench()
    bench.expose("r1")
    bench.expose("r2", at=HORIZON)
    bench.expose("r1", at=0)
    # r1 is over, but its repetition would be taken for a new request by a joiner that begins behind the first copy.
    assert bench.tick(at=WINDOW + HORIZON + ALLOWANCE).cut.exposures_committable == 0
    assert bench.tick(at=WINDOW + 2 * HORIZON + ALLOWANCE).cut.exposures_committable == 3


def test_a_full_memory_retires_the_oldest_requests_first_and_counts_them() -> None:
    bench = Bench(max_pending_bytes=10_000)
    closed = [bench.expose(f"r{number}", at=number) for number in range(5)]
    assert [[group.exposure.request_id for group in groups] for groups in closed] == [[], [], [], ["r0"], ["r1"]]
    assert bench.counts["retired_early"] == 2
    assert bench.intake.pending_bytes <= 10_000
    assert only(bench.answer(request_id="r4")).samples[0].revision == 1
    bench.answer(request_id="r0")
    bench.tick(at=4)
    reasons = Counter(letter.reason for letter in bench.tick(at=5 * WINDOW).emissions if isinstance(letter, DeadLetter))
    assert reasons == {dead_letter_reasons.ORPHAN: 1}


def test_a_full_memory_of_waiting_feedback_gives_up_on_the_oldest() -> None:
    bench = Bench(max_pending_bytes=4_000)
    emissions = [bench.answer(request_id=f"r{number}") for number in range(4)]
    assert [[letter.feedback_id for letter in letters] for letters in emissions] == [[], [], ["f0"], ["f1"]]


def test_reading_holds_one_topic_for_the_other_only_when_memory_runs_short() -> None:
    bench = Bench(max_pending_bytes=10_000)
    bench.tick(at=0, read_to_end=False)
    bench.expose("r1", at=1_000)
    assert bench.intake.may_read_subjects() and bench.intake.may_read_feedback()
    bench.expose("r2", at=2_000)
    assert not bench.intake.may_read_subjects() and bench.intake.may_read_feedback()
    bench.answer(request_id="r9", at=3_000)
    bench.tick(at=0, read_to_end=False)
    assert bench.intake.may_read_subjects() and not bench.intake.may_read_feedback()
    bench.tick(at=3_000)
    assert bench.intake.may_read_subjects() and bench.intake.may_read_feedback()
