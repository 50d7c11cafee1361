"""The mesh's own infrastructure, from the real docker-compose.yml on free ports: what survives which death, and servers from outside."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer

from services.common.topics import ALL
from services.mesh.mesh import Mesh
from services.mesh.settings import MeshSettings

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
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"{' '.join(words)}\r\n".encode())
        return connection.recv(4096)


def topic_names(bootstrap: str) -> set[str]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    try:
        return set(consumer.topics())
    finally:
        consumer.close()


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_the_topic_job_makes_every_topic_on_the_embedded_broker(make: Callable[..., Mesh]) -> None:
    mesh = make()
    mesh.up()
    assert {name: one.state for name, one in mesh.services().items()} == {"kafka": "healthy", "redis": "healthy", "topics": "done"}
    assert {topic.name for topic in ALL} <= topic_names(mesh.address("kafka"))
    assert mesh.environment("topics")["KAFKA_BOOTSTRAP_SERVERS"] == mesh.address("kafka")


def test_what_redis_holds_survives_its_kill(make: Callable[..., Mesh]) -> None:
    mesh = make(services=("redis",))
    mesh.up()
    assert redis(mesh.address("redis"), "SET", "k", "v") == b"+OK\r\n"
    os.kill(mesh.pids()["redis"], signal.SIGKILL)
    assert eventually(lambda: mesh.restarts()["redis"] == 1 and mesh.services()["redis"].state == "healthy")
    assert redis(mesh.address("redis"), "GET", "k") == b"$1\r\nv\r\n"


def test_the_death_of_the_in_memory_broker_is_said_and_not_papered_over(make: Callable[..., Mesh]) -> None:
    mesh = make()
    mesh.up()
    os.kill(mesh.pids()["kafka"], signal.SIGKILL)
    assert eventually(lambda: "kafka" in mesh.failures())
    assert mesh.failures()["kafka"] == (
        "was ended by SIGKILL; its log was in memory and is lost: stop the mesh (make down) and start it again"
    )
    assert mesh.restarts()["kafka"] == 0


def test_a_new_in_memory_broker_puts_aside_what_was_derived_from_the_old_one(make: Callable[..., Mesh]) -> None:
    mesh = make()
    mesh.up()
    redis(mesh.address("redis"), "SET", "k", "v")
    mesh.down()
    again = make()
    again.up()
    assert redis(again.address("redis"), "GET", "k") == b"$-1\r\n"
    assert list((again.folder.path / "volumes.previous" / "redis").glob("appendonly*"))


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
    assert "12 were there already" in again.log_path("topics").read_text()
