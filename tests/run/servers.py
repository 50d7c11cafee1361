"""Servers that a whole run shares: one embedded broker, one Redis, one MLflow, started side by side before the first test.

Tests find them in the environment (tests/conftest.py) and keep out of each other's way: topics of unique names, a Redis database per
worker, experiments and models of their own. A test that kills or fills a server starts its own; so does a test that runs without this.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from services.mesh.runner import embedded
from services.mesh.runner.environments import Environments
from tests import limits

# host:port of each
KAFKA, REDIS, MLFLOW = "TUNEMESH_TEST_KAFKA", "TUNEMESH_TEST_REDIS", "TUNEMESH_TEST_MLFLOW"

Start = Callable[[int, Path], embedded.EmbeddedServer]


def start_broker(port: int, folder: Path) -> embedded.EmbeddedServer:
    """Start an embedded broker and wait until it answers."""
    command = embedded.broker_command(Environments.of_repository(), port=port)
    return _start(command, folder / "broker.log", lambda: embedded.broker_ready(port))


def start_redis(port: int, folder: Path) -> embedded.EmbeddedServer:
    """Start a Redis that keeps everything in memory and wait until it answers."""
    command = embedded.redis_command(Environments.of_repository(), port=port)
    return _start(command, folder / "redis.log", lambda: embedded.redis_ready(port))


def start_mlflow(port: int, folder: Path) -> embedded.EmbeddedServer:
    """Start an MLflow server on an empty database and wait until it answers."""
    command = embedded.mlflow_command(Environments.of_repository(), port=port, data_dir=folder / "mlflow")
    return _start(command, folder / "mlflow.log", lambda: embedded.mlflow_ready(port))


def _start(command: embedded.Command, log: Path, ready: Callable[[], bool]) -> embedded.EmbeddedServer:
    return embedded.EmbeddedServer(command, log=log, ready=ready, timeout_s=limits.seconds(90.0))


class SharedServers:
    """The servers of one run. Entering returns at once; a fixture waits until the one that it needs answers."""

    def __init__(self, folder: Path, *, with_mlflow: bool) -> None:
        """`folder` is theirs alone: it is emptied. MLflow takes seconds of a processor to start: only where all tests run."""
        self._folder, self._with_mlflow = folder, with_mlflow
        self._pool = ThreadPoolExecutor(max_workers=3)
        self._starting: list[Future[embedded.EmbeddedServer]] = []
        self.variables: dict[str, str] = {}

    def __enter__(self) -> SharedServers:
        """Start them."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        starts: dict[str, Start] = {KAFKA: start_broker, REDIS: start_redis}
        if self._with_mlflow:
            starts[MLFLOW] = start_mlflow
        for (variable, start), port in zip(starts.items(), embedded.free_ports(len(starts)), strict=True):
            self.variables[variable] = f"{embedded.LOOPBACK}:{port}"
            self._starting.append(self._pool.submit(start, port, self._folder))
        return self

    def __exit__(self, *_: object) -> None:
        """Kill them, since nobody reads their data again; the first that did not start is the error."""
        self._pool.shutdown()
        for started in self._starting:
            if started.exception() is None:
                started.result().kill()
        for started in self._starting:
            started.result()
