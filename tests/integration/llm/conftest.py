"""One llm service on the tiny model for all tests of this folder, which run in the order of their files: the last test kills its engine."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from services.common.language.lora_store import AdapterStore
from services.mesh.runner.embedded import free_port
from tests.conftest import Broker
from tests.integration.llm.running import Llm, name, publish, refused, until
from tests.service_process import Service
from tests.tiny_model import CONTEXT, tiny_llm_env


@pytest.fixture(scope="package")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llm]:
    """The running service. Its broker is down, and its store holds some adapters."""
    folder = tmp_path_factory.mktemp("llm")
    store = AdapterStore(folder / "artifacts")
    for version in (1, 2, 3):
        publish(store, folder / "made" / str(version), name(version), seed=version)
    publish(store, folder / "made" / "large", name(1, "large"), seed=1, rank=64)
    publish(store, folder / "made" / "foreign", "Other--t--v1", seed=1)
    broker = Broker(folder / "broker")
    broker.kill()
    admin_port = free_port()
    env = {
        **tiny_llm_env(),
        "TUNEMESH_LLM_PORT": "0",
        "TUNEMESH_LLM_ADMIN_PORT": str(admin_port),
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
        running = Llm(process, broker, store, port=process.wait_ready(), admin_port=admin_port)
        assert not running.is_serving()
        assert refused(running.ask).code() == grpc.StatusCode.UNAVAILABLE
        until(running.is_serving, 180)
        yield running
        running.close()
        process.terminate()
    finally:
        process.kill()
        broker.stop()
