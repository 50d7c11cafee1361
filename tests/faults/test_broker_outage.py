"""A durable broker that is down for longer than any delivery timeout, under load: whoever needs it goes on by itself when it is back.

Needs KAFKA_HOME. The broker is killed again each time the runner has started it, until the outage is over.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from threading import Thread

import grpc
import pytest
from tunemesh.events.v1.delta_pb2 import ReplicaStatus
from tunemesh.trainer.v1 import trainer_service_pb2 as pb
from tunemesh.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

from loadtests.bare_mesh import RANKING, bare_mesh
from loadtests.demo.accounting import Accounting, account
from services.common.events.topics import REPLICAS
from services.common.platform.kafka import read_compacted
from services.mesh.runner.mesh import Mesh
from services.mesh.runner.state import ProcessId
from tests.faults.loaded_mesh import Kill, Load

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(600)]

DOWN_S = 15.0
OPTIONS = ("--recommend", "10", "--feedback-grpc", "3", "--feedback-kafka", "3", "--candidates", "50")
# From the broker's being well: kafka-python and aiokafka look for it every second, an updater reports every few.
RECOVERY_LIMIT_S = 30.0
ACCOUNT_LIMIT_S = 90.0


def keep_down(mesh: Mesh, name: str, down_s: float) -> Kill:
    """kill -9 a service whenever it runs, for so long, then let it be; return when it is well."""
    killed_s = time.time()
    while time.time() < killed_s + down_s:
        service = mesh.services()[name]
        if ProcessId(service.pid, service.start_ticks).is_alive:
            os.kill(service.pid, signal.SIGKILL)
        time.sleep(0.2)
    deadline = time.monotonic() + 90
    while True:
        service = mesh.services()[name]
        if service.state == "healthy" and ProcessId(service.pid, service.start_ticks).is_alive:
            return Kill(name, killed_s, time.time())
        assert time.monotonic() < deadline, f"{name} did not come back: {service} (log: {mesh.log_path(name)})"
        time.sleep(0.1)


@dataclass(frozen=True)
class Result:
    """What the run left; statuses are of before the outage, of during it, and of when the trainer had published again."""

    before: pb.GetStatusResponse
    during: pb.GetStatusResponse
    pause_took_s: float
    published_after_s: float
    learned_after_s: float
    reported_after_s: float
    restarts: dict[str, int]
    placed: Accounting
    samples_trained: int
    failed_recommendations: list[str]


def pause_while_down(stub: TrainerServiceStub) -> tuple[float, pb.GetStatusResponse]:
    started = time.monotonic()
    stub.PauseLearning(pb.PauseLearningRequest(), timeout=20)
    took_s = time.monotonic() - started
    status: pb.GetStatusResponse = stub.GetStatus(pb.GetStatusRequest(), timeout=6)
    stub.ResumeLearning(pb.ResumeLearningRequest(), timeout=20)
    return took_s, status


def replica(bootstrap: str) -> ReplicaStatus:
    (record,) = read_compacted(bootstrap, REPLICAS.name, client_id="test").values()
    status = ReplicaStatus()
    status.ParseFromString(record.value)
    return status


def first_time(condition, since_s: float) -> float:
    """Return how many seconds after `since_s` the condition was met."""
    while not condition():
        assert time.time() < since_s + RECOVERY_LIMIT_S, f"not within {RECOVERY_LIMIT_S:.0f} s of the broker's return"
        time.sleep(0.1)
    return time.time() - since_s


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    if "KAFKA_HOME" not in os.environ:
        pytest.skip("needs a durable broker: set KAFKA_HOME to an unpacked Apache Kafka 4")
    folder = tmp_path_factory.mktemp("outage")
    with (
        bare_mesh(folder, services=RANKING, durable_broker=True) as mesh,
        Load(folder / "calls", mesh, *OPTIONS) as load,
        grpc.insecure_channel(mesh.address("trainer")) as channel,
    ):
        stub = TrainerServiceStub(channel)
        kafka = mesh.environment("router")["KAFKA_BOOTSTRAP_SERVERS"]

        def status() -> pb.GetStatusResponse:
            return stub.GetStatus(pb.GetStatusRequest(), timeout=30)

        load.wait_for("recommend", 80, timeout_s=240)
        first_time(lambda: status().samples_trained > 50, time.time())
        before, told = status(), replica(kafka)
        during = []
        outage = keep_down_and(mesh, lambda: during.append(pause_while_down(stub)))
        at_return = status()
        published_s = first_time(lambda: status().seq > at_return.seq + 1, outage.well_s)
        learned_s = first_time(lambda: status().samples_trained > at_return.samples_trained, outage.well_s)
        reported_s = first_time(lambda: replica(kafka).seq > max(told.seq, at_return.seq), outage.well_s)
        calls = load.end(timeout_s=60)
        placed, trained = settled(kafka, calls, status)
        failed = [f"{call.status} {call.detail}" for call in calls if call.kind == "recommend" and not call.ok]
        took_s, while_down = during[0]
        return Result(before, while_down, took_s, published_s, learned_s, reported_s, mesh.restarts(), placed, trained, failed)


def keep_down_and(mesh: Mesh, do) -> Kill:
    """Keep the broker down; half-way through, when every timeout of a first attempt is over, `do`."""

    def later() -> None:
        time.sleep(0.8 * DOWN_S)
        do()

    thread = Thread(target=later)
    thread.start()
    kill = keep_down(mesh, "kafka", DOWN_S)
    thread.join()
    return kill


def settled(kafka: str, calls, status) -> tuple[Accounting, int]:
    """Account for all feedback, and ask the trainer, until both agree or the time is up."""
    acknowledged = [call.feedback_id for call in calls if call.kind.startswith("feedback") and call.ok]
    answered = [call.request_id for call in calls if call.kind == "recommend" and call.ok]
    deadline = time.monotonic() + ACCOUNT_LIMIT_S
    while True:
        placed, trained = account(kafka, acknowledged, answered), status().samples_trained
        if (placed.missing == 0 and trained == placed.samples) or time.monotonic() > deadline:
            return placed, trained
        time.sleep(3.0)


def test_learning_publishing_and_replicas_go_on_without_a_restart_of_anybody(result):
    print(
        f"\nafter the broker was well: published {result.published_after_s:.1f} s, learned {result.learned_after_s:.1f} s, "
        f"replica reported {result.reported_after_s:.1f} s; a pause while it was down took {result.pause_took_s:.1f} s"
    )
    assert {name: count for name, count in result.restarts.items() if count and name != "kafka"} == {}
    assert result.restarts["kafka"] >= 1


def test_the_control_api_answers_while_the_broker_is_down(result):
    assert result.pause_took_s < 6.0
    assert result.during.paused
    assert result.during.epoch == result.before.epoch


def test_recommendations_do_not_notice(result):
    assert result.failed_recommendations == []


def test_nothing_acknowledged_is_lost_and_each_sample_is_learned_once(result):
    placed = result.placed
    assert placed.acknowledged > 50
    assert placed.missing == placed.missing_in_feedback_log == 0, placed
    assert result.samples_trained == placed.samples
