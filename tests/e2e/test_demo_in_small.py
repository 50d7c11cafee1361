"""The whole mesh, as `make demo` runs it, on fewer events: results, accounting, and the trace that one event leaves."""

import pytest

from services.common.platform.telemetry_files import read_spans

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1600)]


@pytest.fixture(scope="module")
def finished(demo):
    return demo.out, demo.report


def test_every_event_is_replayed_and_no_call_fails(finished):
    _, report = finished
    assert report["events_replayed"] >= 900
    assert report["failed_rpcs"] == 0
    assert report["degraded_answers"] == {}


def test_events_are_learned_at_the_serving_replica(finished):
    learned = finished[1]["event_to_learned_s"]
    assert learned["probes"] >= 5
    assert learned["missed"] == 0
    assert learned["p50"] <= 10


def test_every_acknowledged_feedback_is_in_a_sample(finished):
    placed = finished[1]["accounting"]
    assert placed["acknowledged"] == finished[1]["events_replayed"]
    assert placed["in_samples"] == placed["acknowledged"]
    assert placed["missing"] == placed["in_dlq"] == placed["orphans"] == placed["exposures_not_logged"] == 0


def test_the_trainer_trains_on_each_sample_once(finished):
    report = finished[1]
    assert report["trainer"]["samples_trained"] == report["accounting"]["samples"]


def test_the_report_has_every_key_and_learning_beats_the_frozen_copy(finished):
    report = finished[1]
    assert set(report["like_auc"]) == {"live", "frozen", "means"}
    assert set(report["interact_ndcg10"]) == {"live", "frozen", "popularity"}
    for metric in ("like_auc", "interact_ndcg10"):
        for opponent in ("vs_frozen", "vs_counters"):
            assert set(report["gain"][metric][opponent]) == {"mean", "low", "high"}
    assert report["gain"]["interact_ndcg10"]["vs_frozen"]["low"] > 0
    assert {"prepare", "base", "start", "load", "replay", "drain", "report"} <= set(report["phases_s"])


def test_open_recommendations_recall_and_leave_out_what_was_seen(finished):
    opened = finished[1]["open_recommendations"]
    assert opened["answers"] >= 10
    assert opened["items"] == 10 * opened["answers"]
    assert opened["already_seen"] == 0
    assert len(opened["reasons"]) >= 3


def test_one_trace_runs_from_the_router_to_triton(finished):
    spans = read_spans(finished[0] / "telemetry")
    by_id = {(span["trace_id"], span["span_id"]): span for span in spans}
    edges = {(_caller(by_id, span), span["service"]) for span in spans}
    assert ("router", "recommender") in edges
    assert ("recommender", "triton") in edges


def test_feedback_can_be_followed_to_the_rows_of_the_replica(finished):
    """feedback -> joiner by parent; joiner -> trainer step -> delta -> updater by links, where batches merge."""
    spans = read_spans(finished[0] / "telemetry")
    joins = [span for span in spans if span["service"] == "joiner"]
    by_id = {(span["trace_id"], span["span_id"]): span for span in spans}
    assert any(_caller(by_id, join) == "feedback_collector" for join in joins)
    steps = _linked_to(spans, joins, name="trainer.step")
    deltas = _linked_to(spans, steps, name="trainer.publish_delta")
    assert steps and deltas
    assert _linked_to(spans, deltas, name="delta.apply")


def _caller(by_id, child):
    """The service of the nearest ancestor in another service, None when there is none."""
    span = child
    while span is not None and span["service"] == child["service"]:
        span = by_id.get((span["trace_id"], span["parent_id"]))
    return span["service"] if span is not None else None


def _linked_to(spans, targets, *, name):
    """Spans of that name with a link to, or as a child of, one of the targets."""
    ids = {(span["trace_id"], span["span_id"]) for span in targets}
    return [
        span
        for span in spans
        if span["name"] == name
        and ((span["trace_id"], span["parent_id"]) in ids or any((link["trace_id"], link["span_id"]) in ids for link in span["links"]))
    ]
