"""kill -9 of the router and of each process of the language half, on the whole mesh under open-loop load."""

from __future__ import annotations

import pytest

from tests.faults import kills_under_load
from tests.faults.kills_under_load import RATE, SETTLE_S, Result
from tests.limits import seconds

pytestmark = [pytest.mark.deep, pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1800)]

VICTIMS = ("router", "llm", "retriever", "prompt_assembler", "curator", "inference", "tuner", "mlflow", "kafka")
# From the death of what a stream needs, or its last text, to the end of the stream.
LONGEST_SILENCE_S = 10.0


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    return kills_under_load.run(tmp_path_factory.mktemp("load"), VICTIMS)


def test_each_process_was_killed_once_and_started_again(result: Result) -> None:
    print("\n" + "\n".join(result.describe()))
    assert {name: result.restarts[name] for name in result.kills} == dict.fromkeys(result.kills, 1), result.runner_log


def test_recommendations_notice_no_death_but_the_routers(result: Result) -> None:
    calls = result.of("recommend")
    failed = [(call.status, call.detail) for call in calls if not call.ok]
    assert len(failed) <= 0.01 * len(calls), failed[:5]
    others = [call for call in calls if not result.kills["router"].concerns(call, settle_s=SETTLE_S)]
    assert len(others) > 10 * RATE
    assert sum(call.attempts > 1 for call in others) <= 0.01 * len(others)
    assert sum(bool(call.degraded) for call in others) <= 0.01 * len(others)


def test_no_acknowledged_score_of_an_answer_is_lost(result: Result) -> None:
    assert len(result.acknowledged("score")) >= 5
    assert result.unplaced_scores == set()


def test_each_cut_stream_ends_soon_with_a_clear_status(result: Result) -> None:
    cut = [call for call in result.of("generate") if not call.ok]
    deaths = sorted(kill.killed_s for kill in result.kills.values())
    for call in cut:
        assert (call.status, bool(call.detail)) == ("UNAVAILABLE", True), call
        begin_s = call.last_text_s or max([call.started_s, *(death for death in deaths if death <= call.ended_s)])
        assert call.ended_s - begin_s <= seconds(LONGEST_SILENCE_S), call
    by_the_llm = [call for call in cut if call.first_text_s is not None and result.kills["llm"].concerns(call)]
    assert all(call.detail.startswith("the answer was cut after") for call in by_the_llm)


def test_streams_are_cut_by_the_death_of_the_router_or_the_model_only(result: Result) -> None:
    needed = [result.kills["router"], result.kills["llm"]]
    for call in result.of("generate"):
        assert call.ok or any(kill.concerns(call, settle_s=SETTLE_S) for kill in needed), call


def test_answers_say_what_they_lack_and_are_whole_again_at_the_end(result: Result) -> None:
    allowed = {"retrieval_unavailable", "prompt_assembler_unavailable", "labels_unavailable", "adapter_unavailable", "aliases_unknown"}
    answers = [call for call in result.of("generate") if call.ok]
    for call in answers:
        assert set(filter(None, call.degraded.split(","))) <= allowed
    well_s = max(kill.well_s for kill in result.kills.values())
    assert "" in [call.degraded for call in answers if call.planned_s > well_s]


def test_the_other_half_loses_nothing_meanwhile(result: Result) -> None:
    placed = result.placed
    assert placed.acknowledged == len(result.acknowledged("rating")) > 50
    assert placed.missing_in_feedback_log == 0 and placed.missing <= result.num_unread, placed
    assert result.samples_trained == placed.samples
