"""Negatives of what was seen, when the feature spec says so."""

import pytest

from services.common.events import dead_letter_reasons
from tests.unit.streams.joiner.bench import HORIZON, ITEMS, SEEN_SPEC, WINDOW, Bench, items_of, kept, only
from tests.unit.streams.partitioned.test_intake import ALLOWANCE

FIRST, SECOND, THIRD, *_ = kept()


def test_only_items_that_were_seen_and_not_answered_become_negatives() -> None:
    bench = Bench(spec=SEEN_SPEC)
    bench.expose()
    for item_id in (FIRST, SECOND, next(item for item in ITEMS if item not in kept())):
        assert bench.see(item_id) == []
    bench.answer(SECOND)
    bench.answer(THIRD)
    group = only(bench.tick(at=WINDOW + ALLOWANCE).emissions)
    assert items_of(group) == [FIRST]
    assert (group.samples[0].labels, group.samples[0].keep_rate, group.samples[0].revision) == ((("interact", 0.0),), 0.5, 0)
    assert bench.counts["impressions"] == 3


def test_without_impressions_nothing_is_a_negative_and_acts_are_positives_all_the_same() -> None:
    bench = Bench(spec=SEEN_SPEC)
    bench.expose()
    assert only(bench.answer(FIRST)).samples[0].labels == (("interact", 1.0), ("like", 1.0))
    assert bench.tick(at=WINDOW + ALLOWANCE).emissions == []


def test_a_late_impression_makes_its_negative_at_once_and_only_once() -> None:
    bench = Bench(spec=SEEN_SPEC)
    bench.expose()
    bench.tick(at=WINDOW + ALLOWANCE)
    group = only(bench.see(FIRST, at=WINDOW + 5_000, traceparent="trace of the impression"))
    assert items_of(group) == [FIRST] and group.traceparent == "trace of the impression"
    assert bench.see(FIRST, at=WINDOW + 6_000) == []
    assert bench.counts["duplicate_impressions"] == 1


def test_a_late_answer_takes_back_the_negative_of_a_seen_item_alone() -> None:
    bench = Bench(spec=SEEN_SPEC)
    bench.expose()
    bench.see(FIRST)
    bench.tick(at=WINDOW + ALLOWANCE)
    assert only(bench.answer(FIRST, at=WINDOW + 5_000)).samples[0].retracts_negative is True
    assert only(bench.answer(SECOND, at=WINDOW + 5_000)).samples[0].retracts_negative is False
    assert bench.see(SECOND, at=WINDOW + 6_000) == [], "an answered item is no negative"


def test_an_impression_waits_for_its_exposure_and_is_read_again_with_it() -> None:
    bench = Bench(spec=SEEN_SPEC)
    bench.see(FIRST)
    assert bench.expose() == []
    cut = bench.tick(at=5_000).cut
    assert (cut.feedback_position, cut.feedback_committable) == (1, 0)
    assert items_of(only(bench.tick(at=WINDOW + ALLOWANCE).emissions)) == [FIRST]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"item_id": "never shown"}, dead_letter_reasons.ITEM_NOT_EXPOSED), ({"at": WINDOW + HORIZON}, dead_letter_reasons.TOO_LATE)],
)
def test_an_impression_that_cannot_be_joined_is_set_aside(changes, reason) -> None:
    bench = Bench(spec=SEEN_SPEC)
    bench.expose()
    assert only(bench.see(**({"item_id": FIRST} | changes))).reason == reason


def test_impressions_are_counted_and_not_used_where_the_spec_does_not_ask_for_them() -> None:
    bench = Bench()
    bench.expose()
    assert bench.see(FIRST) == bench.see(FIRST, request_id="unknown") == []
    outcome = bench.tick(at=WINDOW + ALLOWANCE)
    assert items_of(only(outcome.emissions)) == kept()
    assert (bench.counts["impressions_unused"], outcome.cut.feedback_position) == (2, 2)


def test_many_impressions_of_a_request_take_no_memory() -> None:
    bench = Bench(spec=SEEN_SPEC)
    bench.expose()
    before = bench.intake.pending_bytes
    for number in range(1_000):
        bench.see(ITEMS[number % len(ITEMS)])
    assert bench.intake.pending_bytes == before
