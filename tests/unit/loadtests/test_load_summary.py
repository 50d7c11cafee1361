import dataclasses

import pytest

from loadtests.load.calls import NOT_SENT, NOTHING_TO_REPORT, OK, Call, CallLog, read_calls
from loadtests.load.summary import longest_gap_s, summarise, timeline


def call(planned_s: float, took_s: float = 0.1, *, late_s: float = 0.0, kind: str = "recommend", status: str = OK, **more: object) -> Call:
    fields = {"planned_s": planned_s, "started_s": planned_s + late_s, "ended_s": planned_s + late_s + took_s, "attempts": 1}
    return Call(kind=kind, status=status, **(fields | more))


def test_latency_counts_from_when_a_call_was_due_and_service_time_from_when_it_was_sent():
    found = summarise([call(0.0, 0.1), call(1.0, 0.1, late_s=2.0)])["recommend"]
    assert found["latency_ms"]["max"] == pytest.approx(2100)
    assert found["service_ms"]["max"] == pytest.approx(100)
    assert found["late_starts"] == 1
    assert found["latest_start_ms"] == pytest.approx(2000)


def test_failures_are_counted_by_reason_and_have_no_latency():
    calls = [call(0.0), call(1.0, 20.0, status="UNAVAILABLE", detail="away"), call(2.0, 0.0, status=NOT_SENT, attempts=0)]
    found = summarise(calls)["recommend"]
    assert (found["planned"], found["succeeded"], found["failed"], found["not_sent"]) == (3, 1, 2, 1)
    assert found["success_ratio"] == pytest.approx(1 / 3)
    assert found["failures"] == {"UNAVAILABLE: away": 1, NOT_SENT: 1}
    assert found["latency_ms"]["max"] == pytest.approx(100)


def test_feedback_without_an_answer_to_report_on_is_neither_done_nor_failed():
    found = summarise([call(0.0, kind="feedback_grpc"), call(1.0, kind="feedback_grpc", status=NOTHING_TO_REPORT)])["feedback_grpc"]
    assert (found["planned"], found["failed"], found["nothing_to_report"]) == (1, 0, 1)


def test_no_success_at_all_gives_no_percentiles():
    found = summarise([call(0.0, 1.0, status="UNAVAILABLE")])["recommend"]
    assert found["latency_ms"] is None
    assert found["longest_gap_s"] == pytest.approx(1.0)


def test_the_longest_gap_is_the_longest_time_in_which_no_call_succeeded():
    calls = [call(0.0), call(0.5), call(1.0, 3.0, status="UNAVAILABLE"), call(1.5, 3.0), call(5.0)]
    assert longest_gap_s(calls) == pytest.approx(4.5 - 0.6)
    assert longest_gap_s(calls, since_s=2.0, until_s=4.6) == pytest.approx(2.5)
    assert longest_gap_s([]) == 0.0


def test_streams_are_summarised_by_first_text_tokens_and_cuts():
    calls = [
        call(0.0, 2.0, kind="generate", first_text_s=0.5, last_text_s=1.9, tokens=30, finish_reason="stop"),
        call(3.0, 1.0, kind="generate", first_text_s=3.2, last_text_s=3.9, tokens=5, status="UNAVAILABLE"),
    ]
    found = summarise(calls)["generate"]
    assert found["first_text_ms"]["p50"] == pytest.approx(500)
    assert found["tokens_per_s_of_a_stream"] == pytest.approx(20)
    assert found["cut"] == 1


def test_the_timeline_puts_calls_where_they_were_due_and_marks_failures():
    calls = [call(10.0), call(10.9, 5.0), call(12.1, status="UNAVAILABLE"), call(12.2, degraded="ranker_unavailable")]
    first, second = timeline(calls, bucket_s=1.0)
    assert (first.at_s, first.planned, first.failed) == (0.0, 2, 0)
    assert first.percentiles_ms is not None and first.percentiles_ms[2] > 4000
    assert (second.at_s, second.planned, second.failed, second.degraded) == (2.0, 2, 1, 1)
    assert timeline([], bucket_s=1.0) == []


def test_the_log_can_be_read_while_it_is_written_and_whole_lines_come_back(tmp_path):
    path = tmp_path / "deep" / "calls.jsonl"
    with CallLog(path) as log:
        log.add(call(1.0, detail="x" * 1000, feedback_id="f1"))
        with path.open("a") as file:
            file.write('{"kind": "recom')
        (found,) = read_calls(path)
    assert found == dataclasses.replace(log.calls[0])
    assert len(found.detail) == 300
