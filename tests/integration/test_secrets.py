"""Planted secrets: what a process is given to connect with stands in no log, no trace and no error of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tunemesh.recommender.v1 import recommender_service_pb2, recommender_service_pb2_grpc

from services.common.platform.secrets import Redactor
from services.common.platform.telemetry import Telemetry
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.embedded import free_ports
from services.mesh.runner.environments import REPOSITORY_ROOT, EnvironmentName
from tests.limits import seconds
from tests.service_process import Service
from tests.tiny_model import tiny_llm_env
from tests.waiting import eventually

MARK = "p1anted"
SECRETS = {
    "HF_TOKEN": f"{MARK}-hub",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}-store",
    "MLFLOW_TRACKING_PASSWORD": f"{MARK}-registry",
    # Not of the form name=value: OpenTelemetry's SDK logs it as it is.
    "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization: Bearer {MARK}-collector",
}
# The others have the deep test.
TRIED_ALWAYS = {"recommender", "router"}


def programs() -> list[tuple[str, EnvironmentName]]:
    """The long-running programs of the mesh, with their environment."""
    services = load_compose(REPOSITORY_ROOT / "docker-compose.yml", {}).services.values()
    return sorted({(one.command[2], one.local.env) for one in services if one.local and one.local.env and one.healthcheck})


@contextmanager
def running(module: str, environment: EnvironmentName, folder: Path, **env: str) -> Iterator[Service]:
    """The program with secrets for neighbours that are not there."""
    redis, mlflow, collector, kafka = free_ports(4)
    planted = SECRETS | {
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{kafka}",
        "REDIS_URL": f"redis://user:{MARK}-features@127.0.0.1:{redis}/0",
        "MLFLOW_TRACKING_URI": f"http://user:{MARK}-runs@127.0.0.1:{mlflow}",
        "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
        "TUNEMESH_TABLES_DIR": str(folder / "tables"),
        "TUNEMESH_ARTIFACTS_URL": str(folder / "artifacts"),
        f"TUNEMESH_{module.rpartition('.')[2].upper()}_PORT": "0",
    }
    if module.endswith("router"):
        planted |= {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector}", "TUNEMESH_ROUTER_SPOOL_DIR": str(folder / "spool")}
    service = Service(environment, module, planted | env, folder / "log")
    try:
        yield service
    finally:
        service.kill()


def assert_nothing_planted(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert {str(path): content for path in files if MARK in (content := path.read_text(encoding="utf-8", errors="replace"))} == {}


@pytest.mark.timeout(120)
def test_a_recommender_whose_redis_refuses_its_password_tells_nobody_the_password(tmp_path: Path, redis_url: str) -> None:
    refused = redis_url.replace("redis://", f"redis://user:{MARK}-features@")
    with running("services.recommender", "light", tmp_path, REDIS_URL=refused, TUNEMESH_RECOMMENDER_CATALOG_WAIT_MS="0") as service:
        with grpc.insecure_channel(f"127.0.0.1:{service.wait_ready()}") as channel:
            stub = recommender_service_pb2_grpc.RecommenderServiceStub(channel)
            request = recommender_service_pb2.RecommendRequest(user_id="u", candidates=["1"], limit=1)
            answer = stub.Recommend(request, timeout=seconds(30))
        assert "features_unavailable" in answer.degraded_reason
        eventually(lambda: service.log, lambda log: "online features are unavailable" in log)
        assert "redis_url=redis://***@127.0.0.1" in service.log
        assert service.terminate() == 0
    assert MARK not in str(answer)
    assert_nothing_planted(tmp_path)


@pytest.mark.timeout(120)
def test_a_router_whose_collector_takes_nothing_tells_nobody_its_header(tmp_path: Path) -> None:
    with running("services.router", "light", tmp_path) as service:
        service.wait_ready()
        eventually(lambda: service.log, lambda log: "Header format invalid" in log)
        assert service.terminate() == 0
    assert_nothing_planted(tmp_path)


def shows_a_secret(folder: Path, module: str, environment: EnvironmentName) -> str:
    """Start a program, end it once it listens or has given up, and return what is wrong."""
    folder.mkdir()
    with running(module, environment, folder, **tiny_llm_env()) as service:
        eventually(lambda: service.log, lambda log: "READY" in log or service.has_ended, limit_s=240)
        if not service.has_ended:
            service.terminate(60)
        if "settings:" not in service.log:
            return f"{module} did not come as far as its settings: {service.log[-600:]}"
    found = [str(path) for path in folder.rglob("*") if path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")]
    return f"{module}: {found}" if found else ""


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_no_other_program_of_the_mesh_shows_a_secret(tmp_path: Path) -> None:
    others = [one for one in programs() if one[0].rpartition(".")[2] not in TRIED_ALWAYS]
    assert len(others) > 10
    with ThreadPoolExecutor(max_workers=4) as pool:
        wrong = list(pool.map(lambda one: shows_a_secret(tmp_path / one[0], *one), others))
    assert [message for message in wrong if message] == []


def test_a_failed_span_holds_no_secret() -> None:
    spans = InMemorySpanExporter()
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = Telemetry("probe", tracer_provider, MeterProvider(shutdown_on_exit=False), 1.0, Redactor([f"{MARK}-runs"]))
    with pytest.raises(ValueError, match=MARK), telemetry.span("work"):
        raise ValueError(f"the password {MARK}-runs was refused")
    [span] = spans.get_finished_spans()
    assert span.status.description == "ValueError: the password *** was refused"
