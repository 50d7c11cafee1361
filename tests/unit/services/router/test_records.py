from dataclasses import replace

import numpy as np
import pytest
from tunemesh.events.v1 import exposure_pb2, generation_pb2

from services.common.events.attributes import MAX_BYTES, MAX_TEXT_BYTES
from services.common.events.chat import Message, Passage, Sampling, Usage
from services.common.events.envelope import header
from services.common.events.limits import MAX_RECORD_BYTES
from services.common.events.wire.exposure import parse_exposure
from services.common.platform import telemetry
from services.common.platform.traceparent import current_traceparent
from services.recommender.core import Answer, RankedItems, Scores
from services.recommender.servicer import RecommenderServicer
from services.router.core import Exposure, Query, Recommendation
from services.router.generation import Generation, Header
from services.router.question import Question
from services.router.records import exposure_record, generation_record
from tests.edge_fakes import FakeItem, ranking_of
from tests.recommender_fakes import SPEC, Fixture


def exposure(number: int) -> Exposure:
    query = Query(user_id=f"user-{number}", candidates=("a", "b"), limit=2)
    answer = Recommendation(request_id=f"request-{number}", experiment="", variant="default", ranking=ranking_of(query))
    return Exposure(
        user_id=query.user_id, exposed_at_ms=1_700_000_000_000, idempotency_key="k", candidates_given=True, recommendation=answer
    )


def test_the_record_says_what_was_shown_to_whom_and_carries_the_trace():
    signals = telemetry.disabled()
    with signals.span("request"):
        record = exposure_record(exposure(1))
        traceparent = current_traceparent()
    value = exposure_pb2.Exposure.FromString(record.value)
    assert (record.topic, record.key) == ("exposures.v1", b"user-1")
    assert (value.request_id, value.user_id, list(value.item_ids)) == ("request-1", "user-1", ["a", "b"])
    assert (value.features_block, value.schema_hash, value.model_version) == (b"block", "h", "1.7")
    assert (value.variant, value.idempotency_key, value.candidates_given) == ("default", "k", True)
    assert value.exposed_at_ms == 1_700_000_000_000
    assert list(value.scores) == [0.5, 0.5] and list(value.reasons) == ["candidate", "candidate"]
    assert header(record.headers, "traceparent") == traceparent
    assert (header(record.headers, "ce_id"), header(record.headers, "ce_type")) == ("request-1", "tunemesh.events.v1.Exposure")


def test_the_record_has_what_the_request_brought():
    context = {"page": "home", "hour": 21, "price": 7.5, "is_app": True, "tags": ("a",), "embedding": (0.5, 1.0), "none": ()}
    brought = replace(exposure(1), context=context, profile={"age": 31})
    record = exposure_record(brought)
    read = parse_exposure(record.value, record.headers, with_request=True)
    assert (read.context, read.profile) == (context, {"age": 31})
    assert (read.context["hour"], read.context["is_app"]) == (21, True) and type(read.context["is_app"]) is bool
    assert not parse_exposure(record.value, record.headers).context  # who joins or counts does not take it in
    without = exposure_record(exposure(1))
    assert len(without.value) < len(record.value) and b"home" not in without.value


def test_the_largest_context_and_profile_fit_into_a_record():
    largest = {f"{number}": "x" * (MAX_TEXT_BYTES - 1) for number in range(MAX_BYTES // MAX_TEXT_BYTES)}
    record = exposure_record(replace(exposure(1), context=largest, profile=largest))
    assert 2 * MAX_BYTES < len(record.value) < 2 * MAX_BYTES + 1_000 < MAX_RECORD_BYTES


def test_the_scores_of_a_list_that_the_ranker_did_not_score_are_left_out():
    shown = exposure(1)
    ranking = replace(shown.recommendation.ranking, items=[FakeItem("a", task_scores=(), reasons=("popular", "cold_start"))])
    value = exposure_pb2.Exposure.FromString(
        exposure_record(replace(shown, recommendation=replace(shown.recommendation, ranking=ranking))).value
    )
    assert list(value.scores) == [] and list(value.reasons) == ["popular,cold_start"]


@pytest.mark.parametrize("is_scored", [True, False])
def test_columns_of_the_recommender_give_the_record_that_looking_at_each_item_gives(is_scored: bool):
    rng = np.random.default_rng(1)
    servicer = RecommenderServicer(Fixture().core(), SPEC, telemetry.disabled(), max_candidates=500)
    for num_items in (1, 2, 100):
        items = RankedItems(
            item_ids=[f"ü{number}" for number in range(num_items)],
            scores_K=rng.random(num_items).astype(np.float32),
            task_scores_KT=rng.random((num_items, 2 if is_scored else 0)).astype(np.float32),
            reasons=[["popular", "similar_to:1,2"][: rng.integers(0, 3)] for _ in range(num_items)],
        )
        version = Scores(items.task_scores_KT, 1, 2, 3) if is_scored else None
        response = servicer.response(Answer(items=items, version=version, degraded=(), features_block=b"block"))
        shown = exposure(1)
        ranking = replace(shown.recommendation.ranking, items=response.items, logged=None)
        one_by_one = exposure_record(replace(shown, recommendation=replace(shown.recommendation, ranking=ranking)))
        ranking = replace(ranking, logged=response.logged)
        assert exposure_record(replace(shown, recommendation=replace(shown.recommendation, ranking=ranking))) == one_by_one
        assert len(exposure_pb2.Exposure.FromString(one_by_one.value).reasons) == num_items


def test_the_record_of_an_answer_has_the_prompt_the_answer_and_all_versions():
    passage = Passage(passage_id="catalog:1", title="Heat", text="1995")
    question = Question(
        user_id="u", text="When?", task="helpdesk", sampling=Sampling(temperature=0.5, top_p=0.9, max_tokens=7, seed=3, stop=("END",))
    )
    top = Header(
        request_id="r",
        experiment="",
        variant="default",
        model_version="M--helpdesk--v1",
        prompt_version="answer@v3",
        degraded_reason="retrieval_unavailable",
        passages=(passage,),
    )
    generation = Generation(
        question=question,
        header=top,
        messages=(Message(role="user", content="When?"),),
        answer="In 1995.",
        finish_reason="stop",
        usage=Usage(prompt_tokens=20, completion_tokens=5),
        started_at_ms=1,
        first_token_at_ms=2,
        finished_at_ms=3,
    )
    record = generation_record(generation)
    value = generation_pb2.Generation.FromString(record.value)
    assert (record.topic, record.key, header(record.headers, "ce_id")) == ("generations.v1", b"u", "r")
    assert header(record.headers, "ce_type") == "tunemesh.events.v1.Generation"
    assert (value.request_id, value.user_id, value.task, value.question, value.answer) == ("r", "u", "helpdesk", "When?", "In 1995.")
    assert [(message.role, message.content) for message in value.messages] == [("user", "When?")]
    assert (value.finish_reason, value.variant, value.model_version, value.prompt_version) == (
        "stop",
        "default",
        "M--helpdesk--v1",
        "answer@v3",
    )
    assert (list(value.passage_ids), value.degraded_reason) == (["catalog:1"], "retrieval_unavailable")
    assert (value.usage.prompt_tokens, value.usage.completion_tokens) == (20, 5)
    assert (value.sampling.max_tokens, value.sampling.seed, list(value.sampling.stop)) == (7, 3, ["END"])
    assert (value.started_at_ms, value.first_token_at_ms, value.finished_at_ms) == (1, 2, 3)
    assert not value.context_given
    given = replace(generation, question=replace(question, context=(passage,)))
    assert generation_pb2.Generation.FromString(generation_record(given).value).context_given
