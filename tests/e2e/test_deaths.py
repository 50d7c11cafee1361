"""kill -9 on the mesh in small, amid traffic: one service without a state and one with. All of them, under load: see tests/faults."""

from __future__ import annotations

import os
import signal

import pytest
from tunemesh.samples.v1.sample_pb2 import SampleRecord

from loadtests.demo.accounting import Accounting, account, read_all
from services.common.events.topics import SAMPLES
from tests.e2e.small_mesh import FILMS, SmallMesh
from tests.e2e.users import Users
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(400)]

VICTIMS = ("router", "trainer")
NUM_EACH = 6


def test_a_killed_router_and_a_killed_trainer_lose_nothing_and_learn_nothing_twice(small: SmallMesh, users: Users) -> None:
    before = small.mesh.services()
    answers, ratings = [], []

    def rate_some() -> None:
        for _ in range(NUM_EACH):
            user = f"death-{len(answers)}"
            answer = users.recommend(user, FILMS)
            answers.append(answer.request_id)
            ratings.append(users.rate(answer.request_id, user, answer.items[0].item_id).feedback_id)

    def placed() -> Accounting:
        return account(small.kafka, ratings, answers)

    rate_some()
    # A killed router takes along the exposures of its last tenth of a second: they are in the log before it is.
    eventually(placed, lambda found: found.in_samples == NUM_EACH)
    for name in VICTIMS:
        os.kill(before[name].pid, signal.SIGKILL)
    rate_some()

    def are_well() -> bool:
        now = small.mesh.services()
        return all(now[name].state == "healthy" and now[name].restarts == before[name].restarts + 1 for name in VICTIMS)

    eventually(are_well)
    rate_some()
    found = eventually(placed, lambda found: found.missing == 0)
    assert (found.acknowledged, found.in_samples, found.orphans, found.exposures_not_logged) == (3 * NUM_EACH, 3 * NUM_EACH, 0, 0)

    def learned_and_logged() -> tuple[int, int]:
        groups = (SampleRecord.FromString(value).group for value in read_all(small.kafka, SAMPLES.name))
        logged = {sample.sample_id for group in groups for sample in group.samples}
        return users.status().samples_trained, len(logged)

    eventually(learned_and_logged, lambda counts: counts[0] == counts[1])
