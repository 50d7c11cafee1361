import pytest

from services.common.events import dead_letter_reasons
from services.common.platform.ids import sample_id
from streams.joiner.model import SampleGroup
from streams.partitioned.records import DeadLetter, Forward, Record
from tests.unit.streams.joiner.bench import HORIZON, ITEMS, SPEC, WINDOW, Bench, items_of, kept, only
from tests.unit.streams.partitioned.test_intake import ALLOWANCE


def test_a_positive_is_emitted_at_once_with_its_labels_and_the_feedbacks_trace() -> None:
    bench = Bench()
    assert bench.expose() == []
    group = only(bench.answer("i3", value=4.0))
    assert isinstance(group, SampleGroup)
    (sample,) = group.samples
    assert (sample.sample_id, sample.row, sample.revision) == (sample_id("r1", "i3", 1), 3, 1)
    assert sample.labels == (("interact", 1.0), ("like", 1.0))
    assert (sample.keep_rate, sample.retracts_negative) == (1.0, False)
    assert sample.feedback is not None and sample.feedback.feedback_id == "f0"
    assert group.traceparent == "trace of the feedback"


def test_a_kind_that_says_nothing_about_a_task_leaves_it_out() -> None:
    bench = Bench()
    bench.expose()
    assert only(bench.answer(kind="click", value=1.0)).samples[0].labels == (("interact", 1.0),)


def test_further_feedback_about_an_item_names_what_it_replaces() -> None:
    bench = Bench()
    bench.expose()
    samples = [
        only(bench.answer(**said)).samples[0]
        for said in ({"kind": "click", "value": 1.0}, {"value": 5.0, "at": 2_000}, {"kind": "click", "value": 1.0, "at": 3_000})
    ]
    clicked, liked = (("interact", 1.0),), (("interact", 1.0), ("like", 1.0))
    assert [(sample.revision, sample.labels, sample.replaces) for sample in samples] == [
        (1, clicked, ()),
        (2, liked, clicked),
        (3, liked, liked),
    ]


def test_an_opinion_that_was_accepted_earlier_does_not_replace_a_later_one() -> None:
    bench = Bench()
    bench.expose()
    bench.answer(value=5.0, at=2_000)
    sample = only(bench.answer(value=1.0, at=1_999)).samples[0]
    assert sample.labels == sample.replaces == (("interact", 1.0), ("like", 1.0))
    assert only(bench.answer(value=1.0, at=2_000)).samples[0].labels == (("interact", 1.0), ("like", 0.0))


def test_unanswered_items_become_negatives_when_the_window_closes_and_not_before() -> None:
    bench = Bench()
    bench.expose(traceparent="trace of the request")
    bench.answer(kept()[0])
    assert bench.tick(at=WINDOW + ALLOWANCE - 1).emissions == []
    group = only(bench.tick(at=WINDOW + ALLOWANCE).emissions)
    assert items_of(group) == kept()[1:]
    assert {(sample.revision, sample.labels, sample.keep_rate, sample.feedback) for sample in group.samples} == {
        (0, (("interact", 0.0),), 0.5, None)
    }
    assert [sample.sample_id for sample in group.samples] == [sample_id("r1", item_id, 0) for item_id in kept()[1:]]
    assert group.traceparent == "trace of the request"
    assert bench.tick(at=2 * WINDOW).emissions == []


def test_a_busy_partition_closes_windows_by_event_time_once_both_topics_have_passed_it() -> None:
    bench = Bench()
    bench.expose()
    bench.expose("r2", at=WINDOW + ALLOWANCE)
    assert bench.tick(at=100, read_to_end=False).emissions == []  # the feedback topic has not come so far
    bench.answer(request_id="r2", at=WINDOW + ALLOWANCE)
    assert bench.tick(at=100, read_to_end=False).emissions == []  # nor has the wall clock
    assert items_of(only(bench.tick(at=WINDOW + ALLOWANCE, read_to_end=False).emissions)) == kept()


def test_a_sender_whose_clock_runs_ahead_closes_no_window() -> None:
    bench = Bench()
    bench.expose()
    bench.expose("r2", at=10**9)
    bench.answer(request_id="r2", at=10**9)
    assert bench.tick(at=1_000, read_to_end=False).emissions == []


def test_late_feedback_takes_back_the_kept_negative_and_only_the_first_time() -> None:
    bench = Bench()
    bench.expose()
    bench.tick(at=WINDOW + ALLOWANCE)
    first, second = only(bench.answer(kept()[0], at=WINDOW + 5_000)), only(bench.answer(kept()[0], at=WINDOW + 6_000))
    assert [(sample.revision, sample.retracts_negative) for sample in first.samples + second.samples] == [(1, True), (2, False)]


def test_late_feedback_on_an_item_that_was_not_kept_takes_nothing_back() -> None:
    bench = Bench()
    bench.expose()
    bench.tick(at=WINDOW + ALLOWANCE)
    dropped = next(item_id for item_id in ITEMS if item_id not in kept())
    assert only(bench.answer(dropped, at=WINDOW + 5_000)).samples[0].retracts_negative is False


def test_late_feedback_that_is_read_before_the_window_was_closed_brings_its_negative_along() -> None:
    bench = Bench()
    bench.expose()
    group = only(bench.answer(kept()[0], at=WINDOW))
    assert [(sample.revision, sample.retracts_negative) for sample in group.samples] == [(0, False), (1, True)]
    assert items_of(only(bench.tick(at=WINDOW + ALLOWANCE).emissions)) == kept()[1:]


def test_feedback_in_the_window_that_is_read_after_the_close_still_takes_the_negative_back() -> None:
    bench = Bench()
    bench.expose()
    bench.tick(at=WINDOW + ALLOWANCE)
    assert only(bench.answer(kept()[0], at=WINDOW - 1)).samples[0].retracts_negative is True


def test_a_repeated_feedback_id_is_the_same_act() -> None:
    bench = Bench()
    bench.expose()
    bench.answer(feedback_id="again")
    assert bench.answer(feedback_id="again", at=2_000) == []
    assert only(bench.answer(feedback_id="other")).samples[0].revision == 2
    assert bench.counts["duplicate_feedback"] == 1


def test_a_record_that_is_read_twice_counts_once() -> None:
    bench = Bench()
    bench.expose()
    bench.answer()
    bench.feedback -= 1
    assert bench.answer(feedback_id="whatever") == []
    bench.exposures -= 1
    assert bench.expose("r9") == []
    assert bench.joiner.num_pending == 1


def test_a_repeated_exposure_of_one_request_counts_once() -> None:
    bench = Bench()
    bench.expose()
    bench.expose()
    assert len(bench.tick(at=WINDOW + ALLOWANCE).emissions) == 1


def test_feedback_waits_for_its_exposure_in_order_of_offsets() -> None:
    bench = Bench()
    assert bench.answer("i1") == []
    assert bench.answer("i1", value=2.0) == []
    first, second = bench.expose()
    assert (first.samples[0].revision, second.samples[0].revision) == (1, 2)
    assert second.samples[0].labels == (("interact", 1.0), ("like", 0.0))


def test_feedback_without_an_exposure_becomes_an_orphan_after_the_window() -> None:
    bench = Bench()
    bench.answer(at=1_000)
    bench.tick(at=1_000)
    assert bench.tick(at=1_000 + WINDOW + ALLOWANCE - 1).emissions == []
    letter = only(bench.tick(at=1_000 + WINDOW + ALLOWANCE).emissions)
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.feedback_id, letter.record.value) == (dead_letter_reasons.ORPHAN, "f0", b"raw feedback")


def test_feedback_that_comes_long_after_it_was_accepted_waits_as_long_as_any_other() -> None:
    """After an outage, feedback that a producer held is in the log before the exposures that the router held."""
    bench = Bench()
    bench.tick(at=0)
    bench.answer(at=1_000)
    read_at = 20 * WINDOW
    assert bench.tick(at=read_at).emissions == [] == bench.tick(at=read_at + WINDOW - 1).emissions
    assert len(bench.expose(at=500)) == 1
    bench.answer(request_id="unknown", at=1_000)
    assert not any(isinstance(emission, DeadLetter) for emission in bench.tick(at=2 * read_at).emissions)
    assert isinstance(only(bench.tick(at=2 * read_at + WINDOW).emissions), DeadLetter)


def test_feedback_is_no_orphan_while_exposures_are_still_to_be_read() -> None:
    bench = Bench()
    bench.answer(at=0)
    assert bench.tick(at=10 * WINDOW, read_to_end=False).emissions == []
    assert len(bench.expose()) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"item_id": "never shown"}, dead_letter_reasons.ITEM_NOT_EXPOSED),
        ({"kind": "sneeze"}, dead_letter_reasons.UNKNOWN_KIND),
        ({"value": 0.0}, dead_letter_reasons.VALUE_OUT_OF_RANGE),
        ({"value": 50.0}, dead_letter_reasons.VALUE_OUT_OF_RANGE),
        ({"value": float("nan")}, dead_letter_reasons.VALUE_OUT_OF_RANGE),
        ({"user_id": "u2"}, dead_letter_reasons.USER_MISMATCH),
        ({"at": WINDOW + HORIZON}, dead_letter_reasons.TOO_LATE),
    ],
)
def test_feedback_that_cannot_be_joined_is_set_aside_with_its_reason(changes, reason) -> None:
    bench = Bench()
    bench.expose()
    letter = only(bench.answer(**changes))
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.feedback_id) == (reason, "f0")
    assert bench.counts[reason] == 1


def test_feedback_on_an_answer_without_features_is_set_aside_and_gives_no_negatives() -> None:
    bench = Bench()
    bench.expose(features_block=b"", schema_hash="")
    assert only(bench.answer()).reason == dead_letter_reasons.NO_FEATURES
    assert bench.tick(at=WINDOW + ALLOWANCE).emissions == []


def test_an_exposure_of_another_feature_spec_is_set_aside() -> None:
    letter = only(Bench().expose(schema_hash="0123456789abcdef"))
    assert letter.reason == dead_letter_reasons.SCHEMA_MISMATCH
    assert SPEC.schema_hash in letter.detail and "0123456789abcdef" in letter.detail


def test_malformed_records_are_set_aside_and_stepped_over() -> None:
    bench = Bench()
    record = Record("feedback.v1", 0, 0, None, b"\xff", ())
    assert (
        only(bench.intake.on_unusable_feedback(record, dead_letter_reasons.MALFORMED, "not Protobuf")).reason
        == dead_letter_reasons.MALFORMED
    )
    assert (
        only(bench.intake.on_unusable_subject(record._replace(topic="exposures.v1"), dead_letter_reasons.MALFORMED, "not Protobuf")).detail
        == "not Protobuf"
    )
    bench.feedback = bench.exposures = 1
    cut = bench.tick(at=0).cut
    assert (cut.exposures_committable, cut.feedback_committable, cut.feedback_position) == (1, 1, 1)


def test_a_misplaced_record_is_forwarded_and_moves_no_watermark() -> None:
    bench = Bench()
    assert only(bench.expose(user_id="elsewhere", at=10**6)) == Forward(Record("exposures.v1", 0, 0, b"u1", b"raw exposure", ()), 1)
    forward = only(bench.answer(user_id="elsewhere", at=10**6))
    assert isinstance(forward, Forward) and forward.partition == 1
    cut = bench.tick(at=10**6, read_to_end=False).cut
    assert cut.watermark_ms == 0
    assert (cut.exposures_committable, cut.feedback_committable) == (1, 1)


def test_a_retried_request_supersedes_the_earlier_one_which_gives_no_negatives_but_still_takes_feedback() -> None:
    bench = Bench()
    bench.expose("r1", idempotency_key="k")
    bench.expose("r2", at=500, idempotency_key="k")
    bench.expose("r3", at=500, idempotency_key="k", user_id="u2")
    assert only(bench.answer(request_id="r1", at=WINDOW)).samples[0].retracts_negative is False
    closed = [emission.exposure.request_id for emission in bench.tick(at=WINDOW + 1_000).emissions]
    assert closed == ["r2", "r3"]


def test_feedback_about_answers_is_left_to_the_curator_and_holds_nothing_up():
    bench = Bench()
    bench.expose()
    assert bench.answer("", kind="demonstration") == bench.answer("", kind="boolean", value=1.0, request_id="of an answer") == []
    assert bench.counts["about_answers"] == 2
    outcome = bench.tick(at=WINDOW + HORIZON + 10 * ALLOWANCE)
    assert not any(isinstance(emission, DeadLetter) for emission in outcome.emissions)
    assert outcome.cut.feedback_committable == outcome.cut.feedback_position == 2


def test_misplaced_feedback_about_an_answer_is_forwarded_to_where_its_answer_is():
    (forward,) = Bench().answer("", kind="boolean", value=1.0, user_id="elsewhere")
    assert isinstance(forward, Forward) and forward.partition == 1


def test_a_kind_of_answers_that_names_an_item_is_unknown():
    bench = Bench()
    bench.expose()
    (letter,) = bench.answer("i0", kind="boolean")
    assert isinstance(letter, DeadLetter) and letter.reason == dead_letter_reasons.UNKNOWN_KIND
