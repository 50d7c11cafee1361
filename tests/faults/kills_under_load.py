"""One kill -9 after the other under open-loop load, and what became of every call and every acknowledged feedback.

The load: 20 recommendations a second, feedback by both doors, and two streams where there is a language model. With KAFKA_HOME the broker
is an Apache Kafka and is killed too; the one in memory cannot be, since its log would be gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from tunemesh.events.v1 import dead_letter_pb2, example_pb2
from tunemesh.trainer.v1 import trainer_service_pb2 as trainer_pb2
from tunemesh.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc

from loadtests.bare_mesh import bare_mesh
from loadtests.demo.accounting import Accounting, account, read_all
from loadtests.load.calls import Call
from loadtests.load.summary import longest_gap_s
from services.common.events.topics import FEEDBACK, LLM_EXAMPLES
from services.mesh.runner.mesh import Mesh
from tests.e2e.demo_run import SKIPPED_BY_TANSU
from tests.faults.loaded_mesh import Kill, Load, kill_and_wait
from tests.limits import seconds

RATE = 20.0
OPTIONS = ("--recommend", f"{RATE:g}", "--feedback-grpc", "4", "--feedback-kafka", "4", "--candidates", "50", "--streams", "2")
SETTLE_S = 3.0
_ACCOUNT_LIMIT_S = 120.0
# Feedback waits so long for the exposure of its answer, which a router that was killed or had no broker writes when it can.
_JOIN_WINDOW_S = 10.0


@dataclass(frozen=True)
class Result:
    """All that the run left."""

    calls: list[Call]
    kills: dict[str, Kill]
    restarts: dict[str, int]
    runner_log: str
    """What the runner said: why it started which process again."""
    placed: Accounting
    unplaced_scores: set[str]
    samples_trained: int

    def of(self, kind: str) -> list[Call]:
        """Return the calls of a kind."""
        return [call for call in self.calls if call.kind == kind]

    @property
    def num_unread(self) -> int:
        """How many acknowledged ratings may be in no sample and no dead letter: those that the embedded broker keeps from its readers."""
        return 0 if "kafka" in self.kills else round(SKIPPED_BY_TANSU * self.placed.acknowledged)

    def acknowledged(self, kind: str) -> list[str]:
        """Return the ids of the feedback of a kind that somebody promised to keep."""
        return [call.feedback_id for call in self.calls if call.feedback_kind == kind and call.ok]

    def describe(self) -> list[str]:
        """Return a line for each kill."""
        return [_describe(kill, self.of("recommend")) for kill in self.kills.values()]


def run(folder: Path, victims: Sequence[str], *, services: tuple[str, ...] = ()) -> Result:
    """Start a mesh and the load in `folder`, kill the victims one after the other, and return what is left once all is settled."""
    durable = "KAFKA_HOME" in os.environ
    env = {"TUNEMESH_JOINER_WINDOW_MS": str(round(1_000 * seconds(_JOIN_WINDOW_S)))}
    with (
        bare_mesh(folder, services=services, durable_broker=durable, env=env, limit_s=seconds(300)) as mesh,
        Load(folder / "calls", mesh, *OPTIONS) as load,
    ):
        has_llm = "llm" in mesh.services()
        load.wait_for("recommend", 100)
        if has_llm:
            load.wait_for("generate", 2)
        kills = {}
        for name in victims:
            if name != "kafka" or durable:
                kills[name] = kill_and_wait(mesh, name)
                time.sleep(SETTLE_S)  # of load on a mesh that is whole
        if has_llm:
            load.wait_for("generate", 2, since_s=time.time())
        calls = load.end()
        kafka = mesh.environment("router")["KAFKA_BOOTSTRAP_SERVERS"]
        placed, samples_trained = _settled(mesh, kafka, calls)
        runner_log = (mesh.folder.logs / "supervisor.log").read_text(errors="replace")
        return Result(calls, kills, mesh.restarts(), runner_log, placed, _unplaced_scores(kafka, calls), samples_trained)


def _unplaced_scores(kafka: str, calls: Sequence[Call]) -> set[str]:
    """Acknowledged scores of answers that are in no example and no dead letter, although the curator has had the time."""
    acknowledged = {call.feedback_id for call in calls if call.feedback_kind == "score" and call.ok}
    deadline = time.monotonic() + seconds(_ACCOUNT_LIMIT_S)
    while True:
        placed = {example_pb2.LlmExample.FromString(value).feedback_id for value in read_all(kafka, LLM_EXAMPLES.name)}
        placed |= {dead_letter_pb2.DeadLetter.FromString(value).feedback_id for value in read_all(kafka, FEEDBACK.dlq)}
        left = acknowledged - placed
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(1.0)


def _settled(mesh: Mesh, kafka: str, calls: Sequence[Call]) -> tuple[Accounting, int]:
    """Account for all ratings, and ask the trainer, until both agree or the time is up."""
    ratings = [call.feedback_id for call in calls if call.feedback_kind == "rating" and call.ok]
    answered = [call.request_id for call in calls if call.kind == "recommend" and call.ok]
    deadline = time.monotonic() + seconds(_ACCOUNT_LIMIT_S)
    with grpc.insecure_channel(mesh.address("trainer")) as channel:
        stub = trainer_grpc.TrainerServiceStub(channel)
        while True:
            placed = account(kafka, ratings, answered)
            trained = stub.GetStatus(trainer_pb2.GetStatusRequest(), timeout=seconds(60)).samples_trained
            if (placed.missing == 0 and trained == placed.samples) or time.monotonic() > deadline:
                return placed, trained
            time.sleep(1.0)


def _describe(kill: Kill, calls: Sequence[Call]) -> str:
    gap = longest_gap_s(calls, since_s=kill.killed_s, until_s=kill.well_s + SETTLE_S)
    concerned = [call for call in calls if kill.concerns(call)]
    retried = sum(call.attempts > 1 for call in concerned)
    degraded = sum(bool(call.degraded) for call in concerned)
    counts = f"{retried} retried, {degraded} degraded of {len(concerned)}"
    return f"{kill.name}: well after {kill.well_s - kill.killed_s:.1f} s, gap {gap:.2f} s, {counts}"
