"""The router and the feedback collector as processes on a real broker: what arrives, and what happens while the broker is down."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tunemesh.common.v1 import recommendation_pb2
from tunemesh.events.v1 import exposure_pb2, feedback_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2, feedback_collector_service_pb2_grpc
from tunemesh.recommender.v1 import recommender_service_pb2, recommender_service_pb2_grpc
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.events.envelope import header
from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.telemetry_files import read_spans
from tests.edge_fakes import ServiceProcess
from tests.limits import seconds

pytestmark = pytest.mark.integration


class EchoRecommender(recommender_service_pb2_grpc.RecommenderServiceServicer):
    async def Recommend(self, request, context):
        items = [recommendation_pb2.RankedItem(item_id=item_id) for item_id in request.candidates]
        return recommender_service_pb2.RecommendResponse(items=items, features_block=b"block", schema_hash="h", model_version="1.1")


@pytest.fixture
async def recommender_target() -> AsyncIterator[str]:
    server = grpc.aio.server()
    recommender_service_pb2_grpc.add_RecommenderServiceServicer_to_server(EchoRecommender(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


class Edge:
    """Both services as processes, and clients of them."""

    def __init__(self, bootstrap: str, folder: Path, recommender_target: str, *, delivery_timeout_ms: int) -> None:
        self.bootstrap = bootstrap
        self.telemetry_dir = folder / "telemetry"
        shared = {"KAFKA_BOOTSTRAP_SERVERS": bootstrap, "TUNEMESH_TELEMETRY_DIR": str(self.telemetry_dir)}
        self._router_env = {
            **shared,
            "TUNEMESH_ROUTER_PORT": "0",
            "TUNEMESH_ROUTER_RECOMMENDER_TARGET": recommender_target,
            "TUNEMESH_ROUTER_SPOOL_DIR": str(folder / "spool"),
            "TUNEMESH_ROUTER_DELIVERY_TIMEOUT_MS": str(delivery_timeout_ms),
        }
        self._collector_env = {
            **shared,
            "TUNEMESH_FEEDBACK_COLLECTOR_PORT": "0",
            "TUNEMESH_FEEDBACK_COLLECTOR_DELIVERY_TIMEOUT_MS": str(delivery_timeout_ms),
        }
        self.spool = folder / "spool"

    async def __aenter__(self) -> Edge:
        self.collector = ServiceProcess("services.feedback_collector", self._collector_env)
        await self.start_router()
        self._collector_channel = grpc.aio.insecure_channel(f"127.0.0.1:{await asyncio.to_thread(self.collector.wait_ready)}")
        self._collector_stub = feedback_collector_service_pb2_grpc.FeedbackCollectorServiceStub(self._collector_channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill_router()
        await self._collector_channel.close()
        self.collector.__exit__()

    async def start_router(self) -> None:
        self.router = ServiceProcess("services.router", self._router_env)
        self._router_channel = grpc.aio.insecure_channel(f"127.0.0.1:{await asyncio.to_thread(self.router.wait_ready)}")
        self._router_stub = router_service_pb2_grpc.RouterServiceStub(self._router_channel)

    async def kill_router(self) -> None:
        await self._router_channel.close()
        self.router.__exit__()

    async def recommend(self, number: int) -> str:
        request = router_service_pb2.RecommendRequest(
            user_id=f"user-{number}",
            candidates=["a", "b"],
            idempotency_key=f"key-{number}",
            context={"number": {"integer": number}, "page": {"text": "home"}},
            profile={"half": {"number": number / 2}},
        )
        return (await self._router_stub.Recommend(request, timeout=seconds(40))).request_id

    async def submit(self, number: int, request_id: str) -> Any:
        item = feedback_pb2.Feedback(
            feedback_id=f"feedback-{number}", request_id=request_id, user_id=f"user-{number}", item_id="a", kind="rating", value=5.0
        )
        request = feedback_collector_service_pb2.SubmitFeedbackRequest(feedback=[item])
        return (await self._collector_stub.SubmitFeedback(request, timeout=seconds(40))).receipts[0]

    async def submit_until_accepted(self, number: int, request_id: str) -> Any:
        async with asyncio.timeout(seconds(60)):
            while True:
                try:
                    return await self.submit(number, request_id)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    await asyncio.sleep(0.1)

    async def read(self, topic: str) -> list[Any]:
        def read_all() -> list[Any]:
            consumer = assigned_consumer(self.bootstrap, topic, start="beginning", client_id="test")
            records = drain_to_end(consumer)
            consumer.close()
            return records

        return await asyncio.to_thread(read_all)

    async def exposed(self) -> list[str]:
        """Return the request ids in the log; each exposure has what its request brought, through the spool too."""
        exposures = [exposure_pb2.Exposure.FromString(record.value) for record in await self.read("exposures.v1")]
        for each in exposures:
            number = int(each.user_id.removeprefix("user-"))
            assert (each.context["number"].integer, each.context["page"].text, each.profile["half"].number) == (number, "home", number / 2)
        return [each.request_id for each in exposures]


async def eventually(condition: Callable[[], Awaitable[bool]], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + seconds(timeout_s)
    while True:
        with contextlib.suppress(Unavailable):  # a topic that the broker has not made yet
            if await condition():
                return
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.1)


async def test_exposures_and_feedback_arrive_keyed_by_user_on_one_partition_and_in_one_trace(
    fresh_broker: Any, mesh_topics: Callable[..., None], tmp_path: Path, recommender_target: str
) -> None:
    mesh_topics(fresh_broker.bootstrap, user_partitions=4)
    async with Edge(fresh_broker.bootstrap, tmp_path, recommender_target, delivery_timeout_ms=20_000) as edge:
        requests = [await edge.recommend(number) for number in range(20)]
        receipts = [await edge.submit_until_accepted(number, request_id) for number, request_id in enumerate(requests)]
        assert (await edge.submit(0, requests[0])).duplicate

        async def all_exposed() -> bool:
            return len(await edge.exposed()) == 20

        await eventually(all_exposed)
        exposures, feedback = await edge.read("exposures.v1"), await edge.read("feedback.v1")
        edge.router.terminate()
        edge.collector.terminate()
        assert await asyncio.to_thread(edge.router.wait) == await asyncio.to_thread(edge.collector.wait) == 0
    assert len(feedback) == 20 and not any(receipt.duplicate for receipt in receipts)
    assert {record.key: record.partition for record in exposures} == {record.key: record.partition for record in feedback}
    values = {record.key: feedback_pb2.Feedback.FromString(record.value) for record in feedback}
    for record in exposures:
        value = exposure_pb2.Exposure.FromString(record.value)
        assert record.key == value.user_id.encode()
        assert values[record.key].request_id == value.request_id
        assert values[record.key].accepted_at_ms > 0
        assert header(record.headers, "ce_id") == value.request_id
    spans = {(span["trace_id"], span["span_id"]): span["name"] for span in read_spans(edge.telemetry_dir)}
    for records, name in ((exposures, "router.Recommend"), (feedback, "feedback_collector.SubmitFeedback")):
        for record in records:
            _, trace_id, span_id, _ = (header(record.headers, "traceparent") or "").split("-")
            assert spans[(trace_id, span_id)] == name


async def test_while_the_broker_is_down_requests_succeed_exposures_wait_on_disk_and_feedback_is_unavailable(
    fresh_broker: Any, mesh_topics: Callable[..., None], tmp_path: Path, recommender_target: str
) -> None:
    mesh_topics(fresh_broker.bootstrap)
    async with Edge(fresh_broker.bootstrap, tmp_path, recommender_target, delivery_timeout_ms=500) as edge:
        first = await edge.recommend(0)

        async def first_exposed() -> bool:
            return first in await edge.exposed()

        await eventually(first_exposed)
        fresh_broker.kill()
        meanwhile = [await edge.recommend(number) for number in range(1, 11)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await edge.submit(1, meanwhile[0])
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

        async def all_spooled() -> bool:
            data = b"".join(path.read_bytes() for path in edge.spool.glob("*.spool"))
            return all(request_id.encode() in data for request_id in meanwhile)

        await eventually(all_spooled)
        # A retry while the broker is down is the same request.
        assert await edge.recommend(1) == meanwhile[0]
        # The router dies as well: the next one finds the spool.
        await edge.kill_router()
        await edge.start_router()
        await asyncio.to_thread(fresh_broker.start)
        meanwhile.append(await edge.recommend(11))

        async def all_exposed() -> bool:
            return set(meanwhile) <= set(await edge.exposed())

        await eventually(all_exposed)
        receipt = await edge.submit_until_accepted(1, meanwhile[0])
        assert not receipt.duplicate
        assert (await edge.submit(1, meanwhile[0])).duplicate
        assert [feedback_pb2.Feedback.FromString(record.value).feedback_id for record in await edge.read("feedback.v1")].count(
            "feedback-1"
        ) >= 1

        async def spool_empty() -> bool:
            return not list(edge.spool.glob("*.spool"))

        await eventually(spool_empty)


async def test_what_was_acknowledged_before_the_broker_was_killed_is_there_afterwards(
    durable_kafka: Any, mesh_topics: Callable[..., None], tmp_path: Path, recommender_target: str
) -> None:
    mesh_topics(durable_kafka.bootstrap)
    async with Edge(durable_kafka.bootstrap, tmp_path, recommender_target, delivery_timeout_ms=2_000) as edge:
        requests: list[str] = []
        acknowledged: list[str] = []

        async def act(number: int) -> None:
            request_id = await edge.recommend(number)
            requests.append(request_id)
            receipt = await edge.submit_until_accepted(number, request_id)
            acknowledged.append(receipt.feedback_id)

        async def traffic(start: int) -> None:
            for number in range(start, start + 60):
                await act(number)

        running = [asyncio.ensure_future(traffic(1_000 * worker)) for worker in range(4)]
        await asyncio.sleep(0.5)
        durable_kafka.kill()
        await asyncio.sleep(1)
        await asyncio.to_thread(durable_kafka.start)
        await asyncio.gather(*running)
        assert len(acknowledged) == 240
        written = {feedback_pb2.Feedback.FromString(record.value).feedback_id for record in await edge.read("feedback.v1")}
        assert set(acknowledged) <= written

        async def all_exposed() -> bool:
            return set(requests) <= set(await edge.exposed())

        await eventually(all_exposed)
