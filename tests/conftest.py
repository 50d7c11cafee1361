"""Fixtures that start real infrastructure on free loopback ports: the embedded broker, a durable Kafka, Redis and Triton.

What `make test` shares between all tests of a run is used where it is there (tests/run/servers.py), else started for this session.
They work in both environments (the binaries are looked up in .venv/light and .venv/ml) and import neither torch nor Faust.
TUNEMESH_TEST_BROKER=kafka with KAFKA_HOME runs every broker fixture on Apache Kafka in place of Tansu.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import pytest_timeout

from services.common.platform.errors import ConfigurationError
from services.mesh.runner import embedded
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from services.mesh.runner.topics import create_topics
from tests import limits, speed, standstill
from tests.run import servers

ENVIRONMENTS = Environments.of_repository()
HAS_TORCH = importlib.util.find_spec("torch") is not None


class Broker:
    """A broker that a test can kill and start again; `bootstrap` stays the same."""

    def __init__(self, log_dir: Path, *, kafka_home: Path | None = None) -> None:
        self._log_dir, self._kafka_home = log_dir, kafka_home
        self._port, self._controller_port = embedded.free_ports(2)
        self._server: embedded.EmbeddedServer | None = None
        self.start()

    @property
    def bootstrap(self) -> str:
        return f"{embedded.LOOPBACK}:{self._port}"

    @property
    def is_durable(self) -> bool:
        return self._kafka_home is not None

    def start(self) -> None:
        """Start it (again). A durable one comes back with its data, an embedded one empty and with another cluster id."""
        if self._kafka_home is None:
            command = embedded.broker_command(ENVIRONMENTS, port=self._port)
        else:
            data_dir = self._log_dir / "kafka"
            command = embedded.kafka_command(self._kafka_home, port=self._port, controller_port=self._controller_port, data_dir=data_dir)
        log = self._log_dir / "broker.log"
        ready = functools.partial(embedded.broker_ready, self._port)
        self._server = embedded.EmbeddedServer(command, log=log, ready=ready, timeout_s=limits.seconds(60))

    def restart_with_topics(self, partitions: Mapping[str, int], *, clients: Iterable[int]) -> None:
        """Kill it, start it again and create the topics, while the processes `clients` (pids) stand still.

        The embedded broker creates a topic with four partitions when a client asks for it first
        (findings/tansu_topic_on_first_request.sh), and the clients of a broker that comes back empty ask at once.
        """
        paused = list(clients)
        for pid in paused:
            standstill.suspend(pid)
        try:
            self.kill()
            self.start()
            create_topics(self.bootstrap, partitions)
        finally:
            for pid in paused:
                standstill.resume(pid)

    def kill(self) -> None:
        """kill -9."""
        assert self._server is not None
        self._server.kill()

    def suspend(self) -> None:
        """Let it hang: connections stay open and nothing is answered. `resume` or `kill` ends that."""
        assert self._server is not None
        standstill.suspend(self._server.pid)

    def resume(self) -> None:
        """Let it go on after `suspend`."""
        assert self._server is not None
        standstill.resume(self._server.pid)

    def stop(self) -> None:
        """End it for good, at once: nobody reads its data again."""
        self.kill()


class TritonServer:
    """A running tritonserver: `url` is its gRPC address (host:port), `http_url` its HTTP one."""

    def __init__(self, workspace: Path, *, repository: Path, models: tuple[str, ...], env: Mapping[str, str]) -> None:
        grpc_port, http_port = embedded.free_ports(2)
        command = embedded.triton_command(
            ENVIRONMENTS, http_port=http_port, grpc_port=grpc_port, workspace=workspace, models=models, repository=repository, env=env
        )
        self.url, self.http_url = f"{embedded.LOOPBACK}:{grpc_port}", f"{embedded.LOOPBACK}:{http_port}"
        self.log = workspace / "triton.log"
        self._grpc_port = grpc_port
        self._server = self._start(command, http_port)

    def _start(self, command: embedded.Command, http_port: int) -> embedded.EmbeddedServer:
        """Start it; a second time when its Python backend aborted over its own shared memory, which the mesh's supervisor answers so too.

        The crash is Triton's, comes once in many starts, and is open there (triton-inference-server/server, issue 8882).
        """
        start = functools.partial(
            embedded.EmbeddedServer, command, log=self.log, ready=lambda: embedded.triton_ready(http_port), timeout_s=limits.seconds(90)
        )
        try:
            return start()
        except ConfigurationError as error:
            if "boost::interprocess" not in str(error):
                raise
            warnings.warn(f"a Triton is started again: {error}", stacklevel=2)
            embedded.remove_shared_memory(self._grpc_port)
            return start()

    @property
    def pid(self) -> int:
        return self._server.pid

    def stop(self) -> None:
        """End it and its models' processes at once; asked politely, it takes three seconds."""
        self._server.kill()
        embedded.remove_shared_memory(self._grpc_port)


def pytest_configure(config: pytest.Config) -> None:
    """Measure this machine's speed, shortly, where no run has done so; workers and services' processes find it in the environment."""
    if limits.SPEED_FACTOR not in os.environ:
        os.environ[limits.SPEED_FACTOR] = str(speed.measure(seconds=0.2).factor)
    if HAS_TORCH:
        # Tests run beside others. Torch's threads wait by spinning: two of them on a busy machine took 73 s for what one does in 3.
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool | None:
    """The time that a test may take, from its mark or pyproject.toml, grows with the machine's slowness like every other limit."""
    done: bool | None = pytest_timeout.pytest_timeout_set_timer(item, settings._replace(timeout=limits.seconds(settings.timeout)))
    return done


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name bytes by their argument, not by their content: gzip's holds the second of its making, so that two processes differ.

    Processes that collect different names end the run: "Different tests were collected between gw2 and gw1".
    """
    return argname if isinstance(val, bytes) else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import modules of the other environment: those wholly marked `ml` in light, all that name no `ml` mark in ml."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    text = collection_path.read_text(encoding="utf-8")
    if HAS_TORCH:
        return True if re.match(r"ml\b", config.option.markexpr) and "mark.ml" not in text else None
    return True if re.search(r"^pytestmark = .*mark\.ml\b", text, flags=re.MULTILINE) else None


def _kafka_home() -> Path | None:
    home = os.environ.get("KAFKA_HOME")
    return Path(home) if home else None


def _default_kafka_home() -> Path | None:
    """The Kafka that every broker fixture uses when asked, else none: Tansu."""
    if os.environ.get("TUNEMESH_TEST_BROKER") != "kafka":
        return None
    home = _kafka_home()
    if home is None:
        pytest.fail("TUNEMESH_TEST_BROKER=kafka needs KAFKA_HOME to point at an unpacked Apache Kafka 4")
    return home


def _shared(variable: str, is_ready: Callable[[int], bool]) -> str | None:
    """`host:port` of a server that the whole run shares, once it answers; None where no run has started one."""
    address = os.environ.get(variable)
    if address is None:
        return None
    port = int(address.rpartition(":")[2])
    deadline = time.monotonic() + limits.seconds(120)
    while not is_ready(port):
        assert time.monotonic() < deadline, f"the run's server at {address} ({variable}) does not answer: see build/tests/servers"
        time.sleep(0.1)
    return address


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of one embedded broker for all tests of the run. Use topics of your own: the `topics` fixture makes them."""
    home = _default_kafka_home()
    shared = None if home else _shared(servers.KAFKA, embedded.broker_ready)
    if shared:
        yield shared
        return
    broker = Broker(tmp_path_factory.mktemp("kafka-session"), kafka_home=home)
    yield broker.bootstrap
    broker.stop()


@pytest.fixture
def fresh_broker(tmp_path: Path) -> Iterator[Broker]:
    """An empty embedded broker of this test's own, up at once: for services, whose topic names are fixed. See `mesh_topics`."""
    broker = Broker(tmp_path / "broker", kafka_home=_default_kafka_home())
    yield broker
    broker.stop()


@pytest.fixture
def durable_kafka(tmp_path: Path) -> Iterator[Broker]:
    """An Apache Kafka of this test's own, whose data survives `kill()` and `start()`. Skips without KAFKA_HOME."""
    home = _kafka_home()
    if home is None:
        pytest.skip("needs a durable broker: set KAFKA_HOME to an unpacked Apache Kafka 4")
    broker = Broker(tmp_path / "broker", kafka_home=home)
    yield broker
    broker.stop()


@pytest.fixture
def topics(kafka_bootstrap: str) -> Callable[..., str]:
    """`topics("samples", partitions=2)` creates a topic with a unique name on the session's broker and returns the name."""

    def create(stem: str, *, partitions: int = 1, bootstrap: str | None = None) -> str:
        name = f"{stem}.{uuid.uuid4().hex[:12]}"
        create_topics(bootstrap or kafka_bootstrap, {name: partitions})
        return name

    return create


@pytest.fixture
def mesh_topics() -> Callable[..., None]:
    """`mesh_topics(bootstrap, user_partitions=2)` creates every topic of the mesh, by its own name, on a broker of the test's own."""

    def create(bootstrap: str, *, user_partitions: int = 2, shards: int = 1) -> None:
        from services.mesh.runner.topics import mesh_topic_partitions

        create_topics(bootstrap, mesh_topic_partitions(user_partitions=user_partitions, shards=shards))

    return create


@pytest.fixture(scope="session")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of one Redis for all tests of the run."""
    shared = _shared(servers.REDIS, embedded.redis_ready)
    if shared:
        yield shared
        return
    port = embedded.free_port()
    server = servers.start_redis(port, tmp_path_factory.mktemp("redis"))
    yield f"{embedded.LOOPBACK}:{port}"
    server.kill()


@pytest.fixture
def redis_url(redis_address: str, worker_id: str) -> str:
    """`redis://…` of a database of the run's Redis that this worker has for itself, emptied before each test."""
    database = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    host, _, port = redis_address.partition(":")
    with socket.create_connection((host, int(port)), timeout=limits.seconds(5)) as connection, connection.makefile("rwb") as file:
        file.write(f"SELECT {database}\r\nFLUSHDB\r\n".encode())
        file.flush()
        assert [file.readline(), file.readline()] == [b"+OK\r\n", b"+OK\r\n"]
    return f"redis://{redis_address}/{database}"


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`http://…` of one MLflow server for all tests of the run. Use experiments and models of your own."""
    shared = _shared(servers.MLFLOW, embedded.mlflow_ready)
    if shared:
        yield f"http://{shared}"
        return
    port = embedded.free_port()
    server = servers.start_mlflow(port, tmp_path_factory.mktemp("mlflow"))
    yield f"http://{embedded.LOOPBACK}:{port}"
    server.kill()


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[Callable[..., TritonServer]]:
    """`triton(env={…}, models=("ranker",), repository=…)` starts a tritonserver and returns it when its models are loaded."""
    started: list[TritonServer] = []

    def start(
        *, env: Mapping[str, str] | None = None, models: tuple[str, ...] = ("ranker",), repository: Path = REPOSITORY_ROOT / "model_repo"
    ) -> TritonServer:
        workspace = tmp_path / f"triton-{len(started)}"
        workspace.mkdir()
        started.append(TritonServer(workspace, repository=repository, models=models, env=env or {}))
        return started[-1]

    yield start
    for server in started:
        server.stop()
