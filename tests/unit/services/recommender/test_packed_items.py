"""Packed items are what protobuf would have made of the same answer: for the caller, and for exposures.v1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tunemesh.events.v1 import exposure_pb2
from tunemesh.router.v1 import router_service_pb2

from services.common.platform import telemetry
from services.recommender.core import NO_ITEMS, Answer, RankedItems, Scores
from services.recommender.packed_items import packed
from services.recommender.servicer import RecommenderServicer
from services.router.core import Exposure, Query, Ranking, Recommendation
from services.router.records import exposure_record
from services.router.servicer import _answer
from tests.edge_fakes import ranking_of
from tests.recommender_fakes import SPEC, Fixture

SERVICER = RecommenderServicer(Fixture().core(), SPEC, telemetry.disabled(), max_candidates=500)
REASONS = ["candidate", "cold_start", "similar_to:ünïcode ❤", "x" * 127, "y" * 128, "z" * 600, ""]


def random_answer(rng: np.random.Generator, num_items: int, *, is_scored: bool) -> Answer:
    """Ids of one byte and of many, scores of 0 and far from it, no, one or many reasons."""
    num_tasks = int(rng.integers(1, 40)) if is_scored else 0
    items = RankedItems(
        item_ids=[f"{number}" if rng.random() < 0.5 else f"{number} {'ü' * int(rng.integers(0, 64))}" for number in range(num_items)],
        scores_K=(rng.normal(size=num_items) * rng.choice([0, 1, 1e-30, 1e30])).astype(np.float32),
        task_scores_KT=rng.random((num_items, num_tasks)).astype(np.float32),
        reasons=[rng.choice(REASONS, rng.integers(0, 4), replace=False).tolist() for _ in range(num_items)],
    )
    version = Scores(items.task_scores_KT, 1, 2, 3) if is_scored else None
    return Answer(items=items, version=version, degraded=(), features_block=bytes(rng.integers(0, 256, 300).astype(np.uint8)))


def both(answer: Answer) -> tuple[Ranking, Ranking]:
    """Return the answer as the router gets it: packed, and item by item."""
    one_by_one, in_one = SERVICER.response(answer), SERVICER.packed_response(answer)
    assert not in_one.items and not in_one.features_block and not in_one.HasField("logged")
    plain = replace(ranking_of(Query(user_id="u")), model_version=one_by_one.model_version)
    return (
        replace(plain, items=in_one.items, task_names=in_one.task_names, features_block=b"", schema_hash="", packed=in_one.packed),
        replace(
            plain,
            items=one_by_one.items,
            task_names=one_by_one.task_names,
            features_block=one_by_one.features_block,
            schema_hash=one_by_one.schema_hash,
            logged=one_by_one.logged,
        ),
    )


def recommendation(ranking: Ranking) -> Recommendation:
    return Recommendation(request_id="r", experiment="e", variant="v", ranking=ranking)


@pytest.mark.parametrize("is_scored", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_the_caller_and_the_log_get_what_they_got_item_by_item(seed: int, is_scored: bool) -> None:
    rng = np.random.default_rng(seed)
    for num_items in (1, int(rng.integers(2, 200)), 100):
        in_one, one_by_one = both(random_answer(rng, num_items, is_scored=is_scored))
        assert in_one.num_items == one_by_one.num_items == num_items
        shown, expected = _answer(recommendation(in_one)), _answer(recommendation(one_by_one))
        assert shown == expected and len(shown.items) == num_items
        assert router_service_pb2.RecommendResponse.FromString(shown.SerializeToString()) == expected
        exposures = [
            exposure_record(
                Exposure(user_id="u", exposed_at_ms=7, idempotency_key="k", candidates_given=True, recommendation=recommendation(ranking))
            )
            for ranking in (in_one, one_by_one)
        ]
        first, second = (exposure_pb2.Exposure.FromString(record.value) for record in exposures)
        assert first == second and len(first.item_ids) == num_items and bool(first.scores) == is_scored
        assert exposures[0].key == exposures[1].key


def test_an_answer_without_items_has_the_names_of_the_tasks() -> None:
    found = packed(Answer(items=NO_ITEMS, version=None, degraded=("x",), features_block=b""), SPEC.task_names, SPEC.schema_hash)
    assert found.num_items == 0
    assert router_service_pb2.RecommendResponse.FromString(found.shown) == router_service_pb2.RecommendResponse(task_names=SPEC.task_names)
