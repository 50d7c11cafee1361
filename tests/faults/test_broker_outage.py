"""A durable broker that is down for longer than any delivery timeout, under load: whoever needs it goes on by itself when it is back.

Needs KAFKA_HOME. The broker is killed again each time the runner has started it, until the outage is over.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import grpc
import pytest
from tunemesh.events.v1.delta_pb2 import ReplicaStatus
from tunemesh.trainer.v1 import trainer_service_pb2 as pb
from tunemesh.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

from loadtests.bare_mesh import RANKING, bare_mesh
from loadtests.demo.accounting import Accounting, account
from loadtests.load.calls import Call
from services.common.events.topics import REPLICAS
from services.common.platform.kafka import read_compacted
from services.mesh.runner.mesh import Mesh
from services.mesh.runner.state import ProcessId
from tests.faults.loaded_mesh import Kill, Load, wait_until_well
from tests.limits import seconds
from tests.waiting import eventually

pytestmark = [pytest.mark.deep, pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(600)]

DOWN_S = 15.0
OPTIONS = ("--recommend", "10", "--feedback-grpc", "3", "--feedback-kafka", "3", "--candidates", "50")


@dataclass(frozen=True)
class Result:
    """What the run left; statuses are of before the outage and of during it."""

    before: pb.GetStatusResponse
    during: pb.GetStatusResponse
    after_s: dict[str, float]
    restarts: dict[str, int]
    placed: Accounting
    samples_trained: int
    failed_recommendations: list[str]


def keep_down(mesh: Mesh, name: str, is_over: Callable[[], bool]) -> Kill:
    """kill -9 a service whenever it runs until the outage is over, then let it be; return when it is well."""
    killed_s = time.time()
    while not is_over():
        service = mesh.services()[name]
        if ProcessId(service.pid, service.start_ticks).is_alive:
            os.kill(service.pid, signal.SIGKILL)
        time.sleep(0.1)
    return wait_until_well(mesh, name, killed_s)


def outage(mesh: Mesh, stub: TrainerServiceStub) -> tuple[Kill, pb.GetStatusResponse]:
    """Keep the broker down; late in the outage, when every timeout of a first attempt is over, pause learning and resume it.

    The outage lasts until the trainer has answered: it must, without a broker.
    """
    statuses: list[pb.GetStatusResponse] = []
    answered = Event()
    begin_s = time.monotonic()

    def use_the_control_api() -> None:
        time.sleep(0.8 * DOWN_S)
        try:
            stub.PauseLearning(pb.PauseLearningRequest(), timeout=seconds(60))
            statuses.append(stub.GetStatus(pb.GetStatusRequest(), timeout=seconds(60)))
            stub.ResumeLearning(pb.ResumeLearningRequest(), timeout=seconds(60))
        finally:
            answered.set()

    thread = Thread(target=use_the_control_api)
    thread.start()
    kill = keep_down(mesh, "kafka", lambda: answered.is_set() and time.monotonic() > begin_s + DOWN_S)
    thread.join()
    assert statuses, "the trainer's control API does not answer while the broker is down"
    return kill, statuses[0]


def replica(bootstrap: str) -> ReplicaStatus:
    (record,) = read_compacted(bootstrap, REPLICAS.name, client_id="test").values()
    return ReplicaStatus.FromString(record.value)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    if "KAFKA_HOME" not in os.environ:
        pytest.skip("needs a durable broker: set KAFKA_HOME to an unpacked Apache Kafka 4")
    return run(tmp_path_factory.mktemp("outage"))


def run(folder: Path) -> Result:
    with (
        bare_mesh(folder, services=RANKING, durable_broker=True, limit_s=seconds(240)) as mesh,
        Load(folder / "calls", mesh, *OPTIONS) as load,
        grpc.insecure_channel(mesh.address("trainer")) as channel,
    ):
        stub = TrainerServiceStub(channel)
        kafka = mesh.environment("router")["KAFKA_BOOTSTRAP_SERVERS"]

        def status() -> pb.GetStatusResponse:
            return stub.GetStatus(pb.GetStatusRequest(), timeout=seconds(30))

        load.wait_for("recommend", 80)
        before = eventually(status, lambda now: now.samples_trained > 50)
        told = replica(kafka)
        kill, during = outage(mesh, stub)
        at_return = status()
        conditions: dict[str, Callable[[], bool]] = {
            "published": lambda: status().seq > at_return.seq + 1,
            "learned": lambda: status().samples_trained > at_return.samples_trained,
            "the replica reported": lambda: replica(kafka).seq > max(told.seq, at_return.seq),
        }
        after_s = {}
        for what, condition in conditions.items():
            eventually(condition)
            after_s[what] = round(time.time() - kill.well_s, 1)
        calls = load.end()
        placed, trained = settled(kafka, calls, status)
        failed = [f"{call.status} {call.detail}" for call in calls if call.kind == "recommend" and not call.ok]
        return Result(before, during, after_s, mesh.restarts(), placed, trained, failed)


def settled(kafka: str, calls: Sequence[Call], status: Callable[[], pb.GetStatusResponse]) -> tuple[Accounting, int]:
    """Account for all feedback, and ask the trainer, until both agree or the time is up."""
    acknowledged = [call.feedback_id for call in calls if call.kind.startswith("feedback") and call.ok]
    answered = [call.request_id for call in calls if call.kind == "recommend" and call.ok]
    deadline = time.monotonic() + seconds(90)
    while True:
        placed, trained = account(kafka, acknowledged, answered), status().samples_trained
        if (placed.missing == 0 and trained == placed.samples) or time.monotonic() > deadline:
            return placed, trained
        time.sleep(1.0)


def test_learning_publishing_and_replicas_go_on_without_a_restart_of_anybody(result: Result) -> None:
    print(f"\nseconds after the broker was well: {result.after_s}")
    assert {name: count for name, count in result.restarts.items() if count and name != "kafka"} == {}
    assert result.restarts["kafka"] >= 1


def test_the_control_api_answers_while_the_broker_is_down(result: Result) -> None:
    assert result.during.paused
    assert result.during.epoch == result.before.epoch


def test_recommendations_do_not_notice(result: Result) -> None:
    assert result.failed_recommendations == []


def test_nothing_acknowledged_is_lost_and_each_sample_is_learned_once(result: Result) -> None:
    placed = result.placed
    assert placed.acknowledged > 50
    assert placed.missing == placed.missing_in_feedback_log == 0, placed
    assert result.samples_trained == placed.samples
