"""The mesh's own infrastructure, from the real docker-compose.yml on free ports: what survives which death, and servers from outside."""

import json
import os
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaConsumer

from services.common.events.topics import ALL
from services.common.platform.errors import ConfigurationError
from services.mesh.runner import embedded
from services.mesh.runner.mesh import Mesh
from services.mesh.runner.settings import MeshSettings
from tests.limits import seconds
from tests.waiting import eventually

pytestmark = pytest.mark.integration

INFRASTRUCTURE = ("redis", "topics")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Mesh]]:
    made: list[Mesh] = []

    def mesh(
        *, env: dict[str, str] | None = None, settings: MeshSettings | None = None, services: tuple[str, ...] = INFRASTRUCTURE
    ) -> Mesh:
        made.append(Mesh(run_dir=tmp_path / "run", env=env, services=services, free_ports=True, settings=settings))
        return made[-1]

    yield mesh
    for one in made:
        one.down()


def redis(address: str, *words: str) -> bytes:
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=seconds(5)) as connection:
        connection.sendall(f"{' '.join(words)}\r\n".encode())
        return connection.recv(4096)


def topic_names(bootstrap: str) -> set[str]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    try:
        return set(consumer.topics())
    finally:
        consumer.close()


def test_the_topic_job_makes_every_topic_on_the_embedded_broker(make: Callable[..., Mesh]) -> None:
    mesh = make()
    mesh.up()
    assert {name: one.state for name, one in mesh.services().items()} == {"kafka": "healthy", "redis": "healthy", "topics": "done"}
    assert {topic.name for topic in ALL} <= topic_names(mesh.address("kafka"))
    assert mesh.environment("topics")["KAFKA_BOOTSTRAP_SERVERS"] == mesh.address("kafka")


def mlflow(address: str, call: str, body: dict[str, str] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}/api/2.0/mlflow/{call}", data=data, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=seconds(20)) as answer:
        return dict(json.load(answer))


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_what_mlflow_holds_survives_its_kill_and_it_starts_beside_what_runs(make: Callable[..., Mesh]) -> None:
    mesh = make(services=("redis",))
    mesh.up()
    mesh.start("mlflow")
    assert mesh.environment("tuner")["MLFLOW_TRACKING_URI"] == f"http://{mesh.address('mlflow')}"
    made = mlflow(mesh.address("mlflow"), "experiments/create", {"name": "tunes"})
    os.killpg(mesh.pids()["mlflow"], signal.SIGKILL)
    eventually(lambda: mesh.restarts()["mlflow"] == 1 and mesh.services()["mlflow"].state == "healthy", limit_s=90)
    found = mlflow(mesh.address("mlflow"), "experiments/get-by-name?experiment_name=tunes")
    assert found["experiment"]["experiment_id"] == made["experiment_id"]
    assert mesh.restarts()["redis"] == 0


def test_what_redis_holds_survives_its_kill(make: Callable[..., Mesh]) -> None:
    mesh = make(services=("redis",))
    mesh.up()
    assert redis(mesh.address("redis"), "SET", "k", "v") == b"+OK\r\n"
    os.kill(mesh.pids()["redis"], signal.SIGKILL)
    eventually(lambda: mesh.restarts()["redis"] == 1 and mesh.services()["redis"].state == "healthy")
    assert redis(mesh.address("redis"), "GET", "k") == b"$1\r\nv\r\n"


def test_the_death_of_the_in_memory_broker_is_said_and_not_papered_over(make: Callable[..., Mesh]) -> None:
    mesh = make()
    mesh.up()
    os.kill(mesh.pids()["kafka"], signal.SIGKILL)
    eventually(lambda: "kafka" in mesh.failures())
    assert mesh.failures()["kafka"] == (
        "was ended by SIGKILL; its log was in memory and is lost: stop the mesh (make down) and start it again"
    )
    assert mesh.restarts()["kafka"] == 0
    with pytest.raises(ConfigurationError, match="kafka has lost its log"):
        mesh.start("mlflow")
    assert "mlflow" not in mesh.services()


def test_a_new_in_memory_broker_puts_aside_what_was_derived_from_the_old_one(make: Callable[..., Mesh]) -> None:
    mesh = make()
    mesh.up()
    redis(mesh.address("redis"), "SET", "k", "v")
    mesh.down()
    again = make()
    again.up()
    assert redis(again.address("redis"), "GET", "k") == b"$-1\r\n"
    assert list((again.folder.path / "volumes.previous" / "redis").glob("appendonly*"))
    assert (again.folder.path / "logs.previous" / "topics.log").exists()


def test_a_broker_outside_the_mesh_is_used_and_none_is_started(make: Callable[..., Mesh], fresh_broker) -> None:
    mesh = make(env={"KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap})
    mesh.up()
    assert mesh.external() == {"kafka": "KAFKA_BOOTSTRAP_SERVERS"}
    assert set(mesh.services()) == {"redis", "topics"}
    assert {topic.name for topic in ALL} <= topic_names(fresh_broker.bootstrap)


def test_a_durable_broker_of_the_mesh_keeps_its_topics_and_the_volumes_over_a_restart(make: Callable[..., Mesh]) -> None:
    home = os.environ.get("KAFKA_HOME")
    if not home:
        pytest.skip("needs a durable broker: set KAFKA_HOME to an unpacked Apache Kafka 4")
    settings = MeshSettings(broker="kafka", kafka_home=Path(home))
    mesh = make(settings=settings)
    mesh.up()
    redis(mesh.address("redis"), "SET", "k", "v")
    mesh.down()
    again = make(settings=settings)
    again.up()
    assert redis(again.address("redis"), "GET", "k") == b"$1\r\nv\r\n"
    assert "0 topics created" in again.log_path("topics").read_text()


ADDER = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        inputs = [np.from_dlpack(pb.get_input_tensor_by_name(request, "X")).copy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor.from_dlpack("Y", x + 1.0)]) for x in inputs]
"""
ADDER_CONFIG = """
name: "adder"
backend: "python"
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
TRITON_ONLY = """
services:
  triton:
    image: example:1.0
    restart: always
    command: ["tritonserver", "--model-repository=/models", "--load-model=adder"]
    volumes: ["./models:/models:ro"]
    x-tunemesh: { embedded: triton, ports: { 8000: TUNEMESH_TRITON_HTTP_PORT, 8001: TUNEMESH_TRITON_GRPC_PORT } }
"""


def infer(address: str) -> bool:
    body = b'{"inputs":[{"name":"X","shape":[2],"datatype":"FP32","data":[1.0,2.0]}]}'
    try:
        with urllib.request.urlopen(f"http://{address}/v2/models/adder/infer", data=body, timeout=seconds(10)) as answer:
            return b'"data":[2.0,3.0]' in answer.read()
    except OSError:
        return False


@pytest.mark.timeout(360)
@pytest.mark.parametrize("victim", [pytest.param("the server", marks=pytest.mark.deep), "a model's process"])
def test_triton_serves_again_after_the_kill_of(victim: str, tmp_path: Path) -> None:
    version = tmp_path / "models" / "adder" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(ADDER)
    (version.parent / "config.pbtxt").write_text(ADDER_CONFIG)
    (tmp_path / "docker-compose.yml").write_text(TRITON_ONLY)
    with Mesh(tmp_path / "docker-compose.yml", run_dir=tmp_path / "run", free_ports=True) as mesh:
        mesh.up()
        assert infer(mesh.address("triton", 8000))
        server = psutil.Process(mesh.pids()["triton"])
        [stub] = server.children()
        (server if victim == "the server" else stub).kill()
        eventually(lambda: mesh.restarts()["triton"] == 1 and mesh.services()["triton"].state == "healthy", limit_s=120)
        assert infer(mesh.address("triton", 8000))
        assert not stub.is_running()
        prefix = embedded.shared_memory_prefix(int(mesh.address("triton", 8001).rpartition(":")[2]))
    assert list(Path("/dev/shm").glob(f"{prefix}*")) == []
