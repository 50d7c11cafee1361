"""One llm service on the tiny model for all tests of this folder; one that a test has ended is started again for the next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from services.common.language.lora_store import AdapterStore
from tests.conftest import Broker
from tests.integration.llm.running import Llm, name, publish, refused, until
from tests.service_process import Service
from tests.tiny_model import CONTEXT, tiny_llm_env


class Engine:
    """The running service, and how to start it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._running = folder, contextlib.ExitStack()
        self._llm: Llm | None = None

    def llm(self) -> Llm:
        """Return it, started first if it does not run."""
        if self._llm is None or self._llm.process.has_ended:
            self.stop()
            self._llm = self._running.enter_context(started(self._folder))
        return self._llm

    def stop(self) -> None:
        self._running.close()


@pytest.fixture(scope="package")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("llm")
    store = AdapterStore(folder / "artifacts")
    for version in (1, 2, 3):
        publish(store, folder / "made" / str(version), name(version), seed=version)
    publish(store, folder / "made" / "large", name(1, "large"), seed=1, rank=64)
    publish(store, folder / "made" / "foreign", "Other--t--v1", seed=1)
    engine = Engine(folder)
    yield engine
    engine.stop()


@pytest.fixture
def llm(engine: Engine) -> Llm:
    """The running service. Its broker is down, its store holds some adapters, and it takes two questions at a time."""
    return engine.llm()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Llm]:
    """Start it over the store in `folder`; wait until it serves."""
    store = AdapterStore(folder / "artifacts")
    broker = Broker(folder / "broker")
    broker.kill()
    env = {
        **tiny_llm_env(),
        "TUNEMESH_LLM_PORT": "0",
        "TUNEMESH_LLM_ADMIN_PORT": "0",
        "TUNEMESH_LLM_ADAPTERS_DIR": str(folder / "adapters"),
        "TUNEMESH_LLM_MAX_MODEL_LEN": str(CONTEXT),
        "TUNEMESH_LLM_MAX_TOKENS": str(CONTEXT),
        "TUNEMESH_LLM_MAX_NUM_SEQS": "2",
        "TUNEMESH_LLM_MAX_WAITING": "0",
        "TUNEMESH_LLM_MAX_LORAS": "2",
        "TUNEMESH_LLM_MAX_CPU_LORAS": "2",
        # A dead engine is seen dead: its silence would not be noticed before the tests are over.
        "TUNEMESH_LLM_PROBE_TIMEOUT_MS": "3600000",
        "TUNEMESH_LLM_ALIAS_WAIT_MS": "500",
        "TUNEMESH_ARTIFACTS_URL": str(folder / "artifacts"),
        "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
    }
    process = Service("ml", "services.llm", env, folder / "llm.log")
    try:
        port, admin_port = process.wait_ready(), process.wait_port(r"the adapter API listens on \S+:(\d+)$")
        running = Llm(process, broker, store, port=port, admin_port=admin_port)
        assert not running.is_serving()
        assert refused(running.ask).code() == grpc.StatusCode.UNAVAILABLE
        until(running.is_serving, 180)
        yield running
        running.close()
        process.terminate()
    finally:
        process.kill()
        broker.stop()
