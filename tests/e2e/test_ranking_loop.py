"""The ranking loop once, on the mesh in small: request, exposure, feedback, sample, step, delta, changed prediction, and its trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from tunemesh.events.v1.exposure_pb2 import Exposure
from tunemesh.samples.v1.sample_pb2 import Sample, SampleRecord

from loadtests.demo.accounting import read_all
from services.common.events.topics import SAMPLES
from tests.e2e.small_mesh import FILMS, Prediction, SmallMesh
from tests.e2e.traces import by_id, caller, edges, linked_to
from tests.e2e.users import Users
from tests.waiting import eventually
from tunemesh_client import Receipt

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(400)]

USER, NUM_RATINGS = "loop-user", 8


@dataclass(frozen=True, slots=True)
class Loop:
    """One user's answers and five stars for the first film of each."""

    exposures: list[Exposure]
    ratings: list[Receipt]
    before: Prediction


@pytest.fixture(scope="module")
def loop(small: SmallMesh, users: Users) -> Loop:
    exposures, ratings = [], []
    before = None
    for number in range(NUM_RATINGS):
        answer = users.recommend(USER, FILMS[number : number + 20])
        assert answer.degraded_reason == ""
        exposure = eventually(lambda request_id=answer.request_id: small.exposure(request_id))
        before = before or small.predict(exposure)
        exposures.append(exposure)
        ratings.append(users.rate(answer.request_id, USER, answer.items[0].item_id))
    return Loop(exposures, ratings, before)


def samples(small: SmallMesh) -> Iterable[Sample]:
    for value in read_all(small.kafka, SAMPLES.name):
        yield from SampleRecord.FromString(value).group.samples


def test_each_rating_becomes_one_sample_with_the_label_of_its_task(small: SmallMesh, loop: Loop) -> None:
    ids = {rating.feedback_id for rating in loop.ratings}

    def found() -> dict[str, list[dict[str, float]]]:
        of: dict[str, list[dict[str, float]]] = {}
        for sample in samples(small):
            if sample.feedback_id in ids:
                of.setdefault(sample.feedback_id, []).append({label.task: label.value for label in sample.labels})
        return of

    assert eventually(found, lambda of: of.keys() == ids) == {each: [{"interact": 1.0, "like": 1.0}] for each in ids}


def test_the_trainer_learns_them_and_the_replica_predicts_more_liking_from_the_same_features(
    small: SmallMesh, users: Users, loop: Loop
) -> None:
    accepted_ms = max(rating.accepted_at_ms for rating in loop.ratings)
    status = eventually(users.status, lambda status: status.watermark_ms >= accepted_ms)
    assert status.samples_trained >= NUM_RATINGS and status.publishing_refused == ""
    first = loop.exposures[0]
    rated = first.item_ids[0]

    def has_learned(now: Prediction) -> bool:
        return now.version != loop.before.version and now.like[rated] > loop.before.like[rated]

    eventually(lambda: small.predict(first), has_learned)


def test_what_was_rated_is_not_recommended_again(users: Users, loop: Loop) -> None:
    rated = {exposure.item_ids[0] for exposure in loop.exposures}
    answer = eventually(
        lambda: users.recommend(USER, limit=10),
        lambda answer: len(answer.items) == 10 and not rated & {item.item_id for item in answer.items},
    )
    assert answer.degraded_reason == ""
    assert all(item.reasons for item in answer.items)


def test_one_trace_runs_from_the_router_to_triton(small: SmallMesh, loop: Loop) -> None:
    eventually(lambda: edges(small.spans()), lambda found: found >= {("router", "recommender"), ("recommender", "triton")})


def test_feedback_can_be_followed_to_the_rows_of_the_replica(small: SmallMesh, loop: Loop) -> None:
    """feedback -> joiner by parent; joiner -> trainer step -> delta -> updater by links, where batches merge."""

    def way() -> list[int]:
        spans = small.spans()
        known = by_id(spans)
        joins = [span for span in spans if span["service"] == "joiner" and caller(known, span) == "feedback_collector"]
        steps = linked_to(spans, joins, name="trainer.step")
        deltas = linked_to(spans, steps, name="trainer.publish_delta")
        return [len(joins), len(steps), len(deltas), len(linked_to(spans, deltas, name="delta.apply"))]

    eventually(way, all)
