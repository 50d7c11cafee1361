from services.common.events import dead_letter_reasons as reasons
from services.common.events.feedback import Feedback
from streams.partitioned.intake import Intake
from streams.partitioned.records import DeadLetter, Record

ALLOWANCE = 300


def an_intake(starts: tuple[int, int] = (0, 0), *, allowance_ms: int = ALLOWANCE, max_pending_bytes: int = 1 << 30) -> Intake:
    """That of partition 0; the user "elsewhere" belongs to partition 1."""
    return Intake(0, starts, lambda user: 1 if user == "elsewhere" else 0, allowance_ms=allowance_ms, max_pending_bytes=max_pending_bytes)


def a_feedback(number: int = 0, *, request_id: str = "r1", accepted_at_ms: int = 1_000) -> tuple[Feedback, Record]:
    feedback = Feedback(
        feedback_id=f"f{number}", request_id=request_id, user_id="u", item_id="i", kind="click", value=1.0, accepted_at_ms=accepted_at_ms
    )
    return feedback, Record("feedback.v1", 0, number, b"u", b"raw", ())


def ids(found: list[tuple[Feedback, Record]]) -> list[str]:
    return [feedback.feedback_id for feedback, _ in found]


def test_waiting_feedback_is_found_by_its_request_in_offset_order() -> None:
    waiting = an_intake().waiting
    for number, request_id in enumerate(["r1", "r2", "r1"]):
        waiting.add(*a_feedback(number, request_id=request_id))
    assert ids(waiting.take_of("r1")) == ["f0", "f2"]
    assert waiting.take_of("r1") == waiting.take_of("never asked") == []
    assert (len(waiting), waiting.first_offset(default=9)) == (1, 1)
    assert ids([waiting.take_first()]) == ["f1"]
    assert (len(waiting), waiting.first_offset(default=9), waiting.cost_bytes) == (0, 9, 0)


def test_waiting_feedback_is_found_by_its_age() -> None:
    waiting = an_intake().waiting
    for number, accepted_at_ms in enumerate([2_000, 1_000, 3_000]):
        waiting.add(*a_feedback(number, accepted_at_ms=accepted_at_ms))
    assert waiting.oldest_ms(after_ms=0, default=0) == 1_000
    assert waiting.oldest_ms(after_ms=1_000, default=0) == 2_000
    assert waiting.take_overdue(accepted_until_ms=2_000, met_until_ms=9_000) == [], "nobody has looked at the clock since"
    waiting.meet(5_000)
    assert waiting.take_overdue(accepted_until_ms=2_000, met_until_ms=4_999) == []
    assert ids(waiting.take_overdue(accepted_until_ms=2_000, met_until_ms=5_000)) == ["f0", "f1"]
    assert ids(waiting.take_of("r1")) == ["f2"]
    assert waiting.oldest_ms(after_ms=0, default=7) == 7


def test_both_kept_subjects_and_waiting_feedback_count_as_memory() -> None:
    intake = an_intake(max_pending_bytes=10_000)
    intake.kept_bytes += 9_000
    assert not intake.is_overfull
    intake.waiting.add(*a_feedback())
    assert intake.is_overfull and intake.pending_bytes > 10_000
    intake.give_up_on_first("no room")
    assert intake.pending_bytes == 9_000


def test_reading_holds_one_topic_for_the_other_only_when_memory_runs_short() -> None:
    intake = an_intake(max_pending_bytes=10_000)
    intake.subjects.reach(2_000)
    assert intake.may_read_subjects() and intake.may_read_feedback()
    intake.kept_bytes += 5_000
    assert not intake.may_read_subjects() and intake.may_read_feedback()
    intake.feedback.reach(3_000)
    assert intake.may_read_subjects() and not intake.may_read_feedback()
    intake.watermarks_ms(5_000, (0, 0))  # both have been read to their end
    assert intake.may_read_subjects() and intake.may_read_feedback()


def test_a_topic_that_has_been_read_to_its_end_follows_the_wall_clock_and_another_its_events() -> None:
    intake = an_intake()
    intake.feedback.reach(4_000)
    assert intake.watermarks_ms(9_000, (0, 1)) == (9_000 - ALLOWANCE, 4_000 - ALLOWANCE)
    assert intake.watermarks_ms(9_000, (None, 1)) == (-ALLOWANCE, 4_000 - ALLOWANCE)
    intake.feedback.reach(10**9)  # a sender whose clock runs ahead
    assert intake.watermarks_ms(9_000, (0, 1)) == (9_000 - ALLOWANCE, 9_000 - ALLOWANCE)


def test_malformed_records_are_set_aside_once_and_counted() -> None:
    intake = an_intake(starts=(3, 5))
    [subject] = intake.on_unusable_subject(Record("exposures.v1", 0, 3, None, b"?", ()), reasons.MALFORMED, "not Protobuf")
    [feedback] = intake.on_unusable_feedback(Record("feedback.v1", 0, 5, None, b"?", ()), reasons.MALFORMED, "not Protobuf")
    assert (subject.reason, subject.detail, feedback.reason) == (reasons.MALFORMED, "not Protobuf", reasons.MALFORMED)
    assert intake.on_unusable_subject(Record("exposures.v1", 0, 3, None, b"?", ()), reasons.MALFORMED, "again") == []
    assert intake.on_unusable_feedback(Record("feedback.v1", 0, 4, None, b"?", ()), reasons.MALFORMED, "again") == []
    assert intake.counts == {reasons.MALFORMED: 2}


def test_feedback_that_waited_too_long_is_an_orphan_unless_it_was_done_before_a_restart() -> None:
    intake = an_intake()
    intake.feedback_done = 1
    for number in range(2):
        intake.waiting.add(*a_feedback(number))
    for now_ms in (3_000, 3_999):
        intake.watermarks_ms(now_ms, (0, 0))
    assert intake.give_up_on_waiting(9_000, 1_000, "nothing came") == []
    intake.watermarks_ms(4_000, (0, 0))
    letters = intake.give_up_on_waiting(9_000, 1_000, "nothing came")
    assert letters == [DeadLetter(a_feedback(1)[1], reasons.ORPHAN, "nothing came", "f1")]
    assert intake.counts == {reasons.ORPHAN: 1, "known_before_restart": 1}


def test_a_user_of_another_partition_is_known() -> None:
    assert (an_intake().owner_elsewhere("u"), an_intake().owner_elsewhere("elsewhere")) == (None, 1)
