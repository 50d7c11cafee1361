"""The health probes of docker-compose.yml, run as they stand there against what they ask; and what they may not cost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from services.common.platform import telemetry
from services.common.platform.grpc_server import GrpcServer
from services.common.platform.settings import BaseServiceSettings
from services.mesh.runner import health
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.embedded import free_port
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.readiness import grpc_status
from tests.limits import seconds

SERVING_ANSWER = bytes.fromhex("000000040000000000") + bytes.fromhex("0000070000000000010000000002") + b"\x08\x01"


def probe_of(service: str, inside: int, port: int) -> list[str]:
    """The command of a service's health check, pointed at a port of this machine."""
    check = load_compose(REPOSITORY_ROOT / "docker-compose.yml", {}).services[service].healthcheck
    assert check is not None and any(str(inside) in word for word in check.command)
    return [word.replace(str(inside), str(port)) for word in check.command]


def answers(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, timeout=seconds(60), check=False).returncode == 0


@contextmanager
def listening(reply: bytes | None) -> Iterator[int]:
    """A port where one caller is accepted and gets `reply`, then the end; None: silence."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def serve() -> None:
            connection, _ = server.accept()
            held.append(connection)
            if reply is not None:
                with contextlib.suppress(OSError):  # the caller may have heard enough
                    connection.sendall(reply)
                    connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        for connection in held:
            connection.close()


def test_kafkas_probe_tells_a_broker_from_a_port_where_nobody_or_nothing_answers(kafka_bootstrap) -> None:
    assert answers(probe_of("kafka", 9092, int(kafka_bootstrap.rpartition(":")[2])))
    assert not answers(probe_of("kafka", 9092, free_port()))
    with listening(b"") as port:
        assert not answers(probe_of("kafka", 9092, port))


def test_mlflows_probe_tells_its_server_from_others(mlflow_url) -> None:
    assert answers(probe_of("mlflow", 5000, int(mlflow_url.rpartition(":")[2].strip("/"))))
    assert not answers(probe_of("mlflow", 5000, free_port()))
    with listening(b"HTTP/1.1 503 Service Unavailable\r\n\r\n") as port:
        assert not answers(probe_of("mlflow", 5000, port))


def test_no_probe_starts_a_jvm_or_imports_grpc() -> None:
    services = load_compose(REPOSITORY_ROOT / "docker-compose.yml", {}).services
    words = [word for service in services.values() if service.healthcheck for word in service.healthcheck.command]
    assert [word for word in words if word.endswith(".sh")] == []
    loaded = f"import sys; import {health.__name__}; print(sorted({{'grpc', 'google', 'asyncio', 'pydantic'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "[]\n"


async def test_the_probe_says_what_grpcs_health_service_says() -> None:
    server = GrpcServer(BaseServiceSettings(port=0), telemetry.disabled("probe"))
    port = await server.start(serving=False)
    assert await asyncio.to_thread(health.probe, port, timeout_s=seconds(10)) == "NOT_SERVING"
    assert await grpc_status(port, timeout_s=seconds(10)) == "NOT_SERVING"
    assert await asyncio.to_thread(health.main, ["health", str(port)]) == 1
    await server.set_serving(True)
    assert await asyncio.to_thread(health.probe, port, timeout_s=seconds(10)) == "SERVING"
    assert await grpc_status(port, timeout_s=seconds(10)) == "SERVING"
    assert await asyncio.to_thread(health.main, ["health", str(port)]) == 0
    await server.drain()
    assert await asyncio.to_thread(health.probe, port, timeout_s=seconds(10)) is None
    assert await grpc_status(port, timeout_s=seconds(10)) is None


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"\x00" * 200, SERVING_ANSWER[:-1]])
def test_what_is_no_grpc_server_is_nobody(reply) -> None:
    with listening(reply) as port:
        assert health.probe(port, timeout_s=seconds(10)) is None
    with listening(reply) as port:
        assert asyncio.run(grpc_status(port, timeout_s=seconds(10))) is None


def test_a_server_that_says_nothing_is_waited_for_no_longer_than_the_timeout() -> None:
    with listening(None) as port:
        assert health.probe(port, timeout_s=0.2) is None
    with listening(None) as port:
        assert asyncio.run(grpc_status(port, timeout_s=0.2)) is None
    assert health.main(["health", str(free_port())]) == 1
    assert health.main(["health", "none"]) == health.main(["health"]) == health.main(["health", "0"]) == 2


def test_an_answer_is_read_however_it_is_cut() -> None:
    assert [health.status_in(SERVING_ANSWER[:size]) for size in range(len(SERVING_ANSWER))] == [None] * len(SERVING_ANSWER)
    assert health.status_in(SERVING_ANSWER) == "SERVING"


def read_damaged(num_inputs: int, seed: int) -> int:
    """Read so many damaged or random answers; every one is a status, not there yet, or no answer. Return how many were refused."""
    draw, refused = random.Random(seed), 0
    for _ in range(num_inputs):
        content = bytearray(SERVING_ANSWER if draw.random() < 0.8 else draw.randbytes(draw.randrange(80)))
        for _ in range(draw.randrange(4)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        try:
            assert health.status_in(bytes(content)) in (None, "UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
        except health.NoAnswer:
            refused += 1
    return refused


def test_damaged_answers_are_refused_or_waited_for() -> None:
    assert read_damaged(3_000, seed=1) > 300
