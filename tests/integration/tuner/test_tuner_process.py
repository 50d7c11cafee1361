"""The tuner as a process on a real broker, with everything else down: what it knows, what it refuses, how it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tunemesh.common.v1.chat_pb2 import ChatMessage
from tunemesh.events.v1 import example_pb2
from tunemesh.trainer.v1 import tuner_service_pb2 as pb
from tunemesh.trainer.v1 import tuner_service_pb2_grpc

from services.common.events.envelope import headers_for
from services.common.events.topics import LLM_EXAMPLES
from services.common.platform.kafka_producer import durable_producer
from tests.conftest import Broker
from tests.service_process import Service

pytestmark = [pytest.mark.integration, pytest.mark.ml]

EVALUATION = """
task_slice: [{question: "How long?", accept: [[nine]]}]
context_slice: [{question: "When?", context: [{title: Heat, text: "1995."}], accept: [["1995"]]}]
"""


def example(number: int, *, kind: example_pb2.ExampleKind = example_pb2.EXAMPLE_KIND_DEMONSTRATION) -> example_pb2.LlmExample:
    return example_pb2.LlmExample(
        example_id=f"e{number}",
        task="helpdesk",
        kind=kind,
        question=f"Question {number}?",
        messages=[ChatMessage(role="user", content=f"Question {number}?")],
        answer="Nine days.",
        created_at_ms=1,
    )


def write(bootstrap: str, *examples: example_pb2.LlmExample) -> None:
    producer = durable_producer(bootstrap, client_id="test")
    headers = headers_for(LLM_EXAMPLES.value, "/test")
    for one in examples:
        producer.send(LLM_EXAMPLES.name, key=b"helpdesk", value=one.SerializeToString(), headers=headers).get(10)
    producer.close()


@pytest.fixture
def environment(tmp_path: Path, fresh_broker: Broker, mesh_topics) -> dict[str, str]:
    mesh_topics(fresh_broker.bootstrap)
    model, evaluations = tmp_path / "Tiny", tmp_path / "evaluations"
    for folder in (model, evaluations):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    nobody = "127.0.0.1:1"
    return {
        "KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap,
        "TUNEMESH_LLM_MODEL": str(model),
        "TUNEMESH_ARTIFACTS_URL": str(tmp_path / "artifacts"),
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_TUNER_PORT": "0",
        "TUNEMESH_TUNER_EVALUATIONS_DIR": str(evaluations),
        "TUNEMESH_TUNER_WORK_DIR": str(tmp_path / "work"),
        "TUNEMESH_TUNER_AUTO": "false",
        "TUNEMESH_TUNER_MIN_DEMONSTRATIONS": "3",
        "TUNEMESH_TUNER_CALL_ATTEMPTS": "1",
        "TUNEMESH_TUNER_ROUTER_TARGET": nobody,
        "TUNEMESH_TUNER_LLM_ADMIN_TARGET": nobody,
        "TUNEMESH_TUNER_PROMPT_ASSEMBLER_TARGET": nobody,
        "TUNEMESH_TUNER_TRAINER_TARGET": nobody,
        "MLFLOW_TRACKING_URI": "",
    }


@pytest.fixture
def tuner(environment, tmp_path) -> Iterator[Service]:
    service = Service("ml", "services.tuner", environment, tmp_path / "tuner.log")
    yield service
    service.kill()


def status_when(stub, condition, timeout_s: float = 90.0) -> pb.GetTunerStatusResponse:
    deadline = time.monotonic() + timeout_s
    while True:
        status = stub.GetTunerStatus(pb.GetTunerStatusRequest(), timeout=30)
        if condition(status):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


def test_examples_are_counted_once_thresholds_hold_and_a_tune_without_peers_fails_with_the_reason(environment, tuner, tmp_path):
    with grpc.insecure_channel(f"127.0.0.1:{tuner.wait_ready()}") as channel:
        stub = tuner_service_pb2_grpc.TunerServiceStub(channel)
        bootstrap = environment["KAFKA_BOOTSTRAP_SERVERS"]
        judged = example_pb2.EXAMPLE_KIND_JUDGED
        write(bootstrap, example(1), example(1), example(2), example(3, kind=judged))
        both = "2 demonstrations are there and 3 are needed"
        status = status_when(stub, lambda status: (status.tasks["helpdesk"].judged, status.tasks["helpdesk"].waiting_for) == (1, both))
        assert (status.base_model, status.paused) == ("Tiny", False)
        assert status.tasks["helpdesk"].live == "base"
        write(bootstrap, example(4))
        status_when(stub, lambda status: "there is no evaluation file" in status.tasks["helpdesk"].waiting_for)
        with pytest.raises(grpc.RpcError) as caught:
            stub.StartTune(pb.StartTuneRequest(task="helpdesk", actor="test"), timeout=30)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        (tmp_path / "evaluations" / "helpdesk.yaml").write_text(EVALUATION)
        started = stub.StartTune(pb.StartTuneRequest(task="helpdesk", actor="test"), timeout=30)
        assert started.adapter == "Tiny--helpdesk--v1"
        status_when(stub, lambda status: not status.running_tune_id)
        tune = stub.GetTune(pb.GetTuneRequest(tune_id=started.tune_id), timeout=30)
        assert tune.phase == "failed"
        assert "llm/helpdesk/production could not be read: UNAVAILABLE" in tune.error
    assert tuner.terminate() == 0


def test_a_broker_that_is_down_stops_nothing_but_the_examples(environment, tmp_path):
    service = Service("ml", "services.tuner", environment | {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}, tmp_path / "away.log")
    try:
        with grpc.insecure_channel(f"127.0.0.1:{service.wait_ready()}") as channel:
            status = tuner_service_pb2_grpc.TunerServiceStub(channel).GetTunerStatus(pb.GetTunerStatusRequest(), timeout=10)
            assert dict(status.tasks) == {}
    finally:
        service.kill()


def test_a_model_that_is_not_there_is_one_line_and_exit_code_2(environment, tmp_path):
    service = Service("ml", "services.tuner", environment | {"TUNEMESH_LLM_MODEL": str(tmp_path / "none")}, tmp_path / "bad.log")
    assert service.wait(60) == 2
    assert "configuration error: TUNEMESH_LLM_MODEL" in service.log.splitlines()[-1]
