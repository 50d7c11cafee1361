"""RetrieverService over real gRPC: in process with a fake index, and as a real process without broker, embedder and documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunemesh.retriever.v1 import retriever_service_pb2 as pb
from tunemesh.retriever.v1 import retriever_service_pb2_grpc

from services.common.platform import telemetry
from services.common.platform.errors import Unavailable
from services.common.platform.grpc_server import GrpcServer, Servicer
from services.retriever.core.search import Hit, Searcher
from services.retriever.servicer import RetrieverServicer
from services.retriever.settings import RetrieverSettings
from tests.edge_fakes import ServiceProcess
from tests.limits import seconds

HEALTH_NAME = "tunemesh.retriever.v1.RetrieverService"


class FakeSnapshot:
    version, embedder_version = "e1.7", "e1"
    num_passages, num_by_source = 5, {"files": 2, "catalog": 3}

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def by_vector(self, vector: str, *, source: str, limit: int) -> Sequence[Hit]:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return [Hit(passage_id="catalog:1", title="Alien (1979)", text="Categories: Horror.")]

    async def by_words(self, query: str, *, source: str, limit: int) -> Sequence[Hit]:
        return await self.by_vector(query, source=source, limit=limit)


class FakeEmbedder:
    async def embed_query(self, query: str, *, embedder_version: str) -> str:
        if query == "no vector":
            raise Unavailable("no embedder")
        return query


class Parts:
    """What a test may change of the served retriever."""

    def __init__(self) -> None:
        self.snapshot: FakeSnapshot | None = FakeSnapshot()
        self.refused = {f"file{number:03}.txt": "too large" for number in range(150)}
        self.incomplete = {f"file{number:03}.pdf": "page 3 is a picture" for number in range(150)}


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
async def stub(parts) -> AsyncIterator[retriever_service_pb2_grpc.RetrieverServiceStub]:
    settings = RetrieverSettings(port=0, drain_grace_ms=100)
    signals = telemetry.disabled("retriever")
    implementation = RetrieverServicer(
        Searcher(lambda: parts.snapshot, FakeEmbedder(), lambda: True),
        signals.meter,
        snapshot=lambda: parts.snapshot,
        catalog_offset=lambda: 9,
        refused=lambda: parts.refused,
        incomplete=lambda: parts.incomplete,
        max_concurrent=2,
    )
    servicer = Servicer(
        descriptor=pb.DESCRIPTOR.services_by_name["RetrieverService"],
        implementation=implementation,
        register=retriever_service_pb2_grpc.add_RetrieverServiceServicer_to_server,
    )
    server = GrpcServer(settings, signals, [servicer])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield retriever_service_pb2_grpc.RetrieverServiceStub(channel)
    await server.drain()


async def test_passages_come_with_their_title_text_score_and_the_version_of_the_index(stub):
    response = await stub.Search(pb.SearchRequest(query="horror"), timeout=seconds(5))
    (passage,) = response.passages
    assert (passage.passage_id, passage.title, passage.text) == ("catalog:1", "Alien (1979)", "Categories: Horror.")
    assert passage.score == pytest.approx(2 / 61) and response.index_version == "e1.7" and response.degraded_reason == ""


async def test_a_half_that_is_down_is_said(stub):
    response = await stub.Search(pb.SearchRequest(query="no vector"), timeout=seconds(5))
    assert response.degraded_reason == "vector_search_unavailable" and len(response.passages) == 1


async def test_the_status_names_passages_by_source_and_at_most_a_hundred_refused_files(stub):
    status = await stub.GetIndexStatus(pb.GetIndexStatusRequest(), timeout=seconds(5))
    assert (status.index_version, status.num_passages, dict(status.passages_by_source)) == ("e1.7", 5, {"files": 2, "catalog": 3})
    assert status.catalog_offset == 9 and len(status.refused_files) == 100 and "file000.txt" in status.refused_files
    assert len(status.incomplete_files) == 100 and status.incomplete_files["file099.pdf"] == "page 3 is a picture"


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        (pb.SearchRequest(), "query"),
        (pb.SearchRequest(query="x" * 2049), "query"),
        (pb.SearchRequest(query="x", limit=51), "limit"),
        (pb.SearchRequest(query="x", source="web"), "source"),
    ],
)
async def test_a_bad_request_is_invalid_argument_and_names_the_field(stub, request_, detail):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Search(request_, timeout=seconds(5))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and caught.value.details().startswith(detail)


async def test_without_an_index_both_calls_are_unavailable(stub, parts):
    parts.snapshot = None
    for call in (
        stub.Search(pb.SearchRequest(query="x"), timeout=seconds(5)),
        stub.GetIndexStatus(pb.GetIndexStatusRequest(), timeout=seconds(5)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_index_that_fails_is_unavailable(stub, parts):
    parts.snapshot.failure = Unavailable("the disk is gone")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Search(pb.SearchRequest(query="x"), timeout=seconds(5))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and "the disk is gone" in caught.value.details()


async def test_more_searches_than_may_run_are_refused_at_once_and_later_ones_are_answered(stub, parts):
    parts.snapshot.gate.clear()
    running = [asyncio.ensure_future(stub.Search(pb.SearchRequest(query="x"), timeout=seconds(5))) for _ in range(2)]
    await asyncio.sleep(0.2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Search(pb.SearchRequest(query="x"), timeout=seconds(5))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    parts.snapshot.gate.set()
    assert all(len(response.passages) == 1 for response in await asyncio.gather(*running))
    assert len((await stub.Search(pb.SearchRequest(query="x"), timeout=seconds(5))).passages) == 1


# The real process.


def environment(tmp_path, **overrides: str) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_MODELS_DIR": str(tmp_path / "models"),
        "TUNEMESH_RETRIEVER_PORT": "0",
        "TUNEMESH_RETRIEVER_INDEX_DIR": str(tmp_path / "index"),
        "TUNEMESH_RETRIEVER_CATALOG_WAIT_MS": "100",
        **overrides,
    }


async def test_a_process_without_broker_and_embedder_searches_files_by_words_says_both_and_drains_on_sigterm(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "fees.md").write_text("# Fees\n\nLate films cost two euros a day.\n")
    with ServiceProcess("services.retriever", environment(tmp_path, TUNEMESH_RETRIEVER_DOCUMENTS_DIR=str(tmp_path / "docs"))) as process:
        port = await asyncio.to_thread(process.wait_ready)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for _ in range(200):
                if (
                    await health.Check(health_pb2.HealthCheckRequest(service=HEALTH_NAME))
                ).status == health_pb2.HealthCheckResponse.SERVING:
                    break
                await asyncio.sleep(0.1)
            else:
                pytest.fail(f"never SERVING:\n{process.log}")
            stub = retriever_service_pb2_grpc.RetrieverServiceStub(channel)
            response = await stub.Search(pb.SearchRequest(query="what do late films cost?"), timeout=seconds(5))
            assert [passage.passage_id for passage in response.passages] == ["fees.md#1"]
            assert response.degraded_reason == "vector_search_unavailable,catalog_unavailable"
        process.terminate()
        assert await asyncio.to_thread(process.wait) == 0
    assert "Traceback" not in process.log


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TUNEMESH_RETRIEVER_POLL_MS": "1"}, "TUNEMESH_RETRIEVER_POLL_MS=1"),
        ({"TUNEMESH_RETRIEVER_DOCUMENT_DIR": "x"}, "did you mean TUNEMESH_RETRIEVER_DOCUMENTS_DIR?"),
        ({"TUNEMESH_RETRIEVER_CHUNK_OVERLAP_TOKENS": "300"}, "TUNEMESH_RETRIEVER_CHUNK_OVERLAP_TOKENS=300: it must be less"),
        ({"TUNEMESH_RETRIEVER_INDEX_DIR": "/proc/no/such"}, "/proc/no/such cannot be written"),
    ],
)
def test_a_wrong_configuration_says_what_to_change_and_ends_with_exit_code_2(tmp_path, variables, expected):
    with ServiceProcess("services.retriever", environment(tmp_path, **variables)) as process:
        assert process.wait() == 2
    assert process.lines[-1].startswith("configuration error: ") and expected in process.lines[-1]
    assert "Traceback" not in process.log
