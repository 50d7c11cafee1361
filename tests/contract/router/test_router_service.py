"""RouterService over real gRPC: in process with a fake recommender server, and as a real process."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunemesh.common.v1 import recommendation_pb2
from tunemesh.events.v1 import exposure_pb2
from tunemesh.recommender.v1 import recommender_service_pb2, recommender_service_pb2_grpc
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.language.aliases import AliasView
from services.common.platform import telemetry
from services.common.platform.grpc_server import GrpcServer
from services.common.platform.telemetry_files import read_spans
from services.router.answer_clients import LiveAdapters
from services.router.grpc_recommender import GrpcRecommender
from services.router.records import Generations, exposure_record
from services.router.server import AnswerClients, make_admission, make_router, servicer_of
from services.router.settings import RouterSettings
from tests.edge_fakes import FakeEventLog, FakeExposureLog, ServiceProcess
from tests.limits import seconds
from tunemesh_client.errors import Overloaded, error_of

NOWHERE = "127.0.0.1:1"


class FakeRecommenderServer(recommender_service_pb2_grpc.RecommenderServiceServicer):
    """A recommender behind real gRPC, which fails as it is told to."""

    def __init__(self) -> None:
        self.requests: list[recommender_service_pb2.RecommendRequest] = []
        self.metadata: dict[str, str] = {}
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        self.delay_s = 0.0
        self.degraded_reason = ""
        self.is_new = True

    async def Recommend(self, request, context):
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.failures:
            await context.abort(*self.failures.pop(0))
        await asyncio.sleep(self.delay_s)
        items = [
            recommendation_pb2.RankedItem(item_id=item_id, score=0.5, task_scores=[0.25, 0.75], reasons=["candidate"])
            for item_id in (request.candidates or ["recalled"])
        ]
        if request.packed and self.is_new:
            shown = router_service_pb2.RecommendResponse(items=items[: request.limit], task_names=["interact", "like"])
            exposed = exposure_pb2.Exposure(item_ids=[item.item_id for item in items], features_block=b"\x01block", schema_hash="h")
            return recommender_service_pb2.RecommendResponse(
                model_version="1.42",
                degraded_reason=self.degraded_reason,
                packed={"num_items": len(items), "shown": shown.SerializeToString(), "exposed": exposed.SerializeToString()},
            )
        return recommender_service_pb2.RecommendResponse(
            items=items[: request.limit],
            task_names=["interact", "like"],
            model_version="1.42",
            degraded_reason=self.degraded_reason,
            features_block=b"\x01block",
            schema_hash="h",
            logged={"item_ids": [item.item_id for item in items], "scores": [0.5] * len(items), "reasons": ["candidate"] * len(items)},
        )


@pytest.fixture
async def recommender() -> AsyncIterator[FakeRecommenderServer]:
    fake = FakeRecommenderServer()
    server = grpc.aio.server()
    recommender_service_pb2_grpc.add_RecommenderServiceServicer_to_server(fake, server)
    fake.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield fake
    await server.stop(None)


@pytest.fixture
def exposures() -> FakeExposureLog:
    return FakeExposureLog()


@pytest.fixture
async def stub(request, recommender, exposures) -> AsyncIterator[router_service_pb2_grpc.RouterServiceStub]:
    """Parametrised indirectly by further settings."""
    settings = RouterSettings(
        port=0,
        recommender_target=f"127.0.0.1:{recommender.port}",
        max_candidates=100,
        drain_grace_ms=100,
        **getattr(request, "param", {}),
    )
    client = GrpcRecommender(settings.recommender_target, max_message_bytes=settings.max_message_bytes)
    signals = telemetry.disabled("router")
    answers = AnswerClients(settings)
    generator = answers.generator(settings, LiveAdapters(AliasView()), Generations(FakeEventLog()))
    server = GrpcServer(
        settings, signals, [servicer_of(make_router(settings, client, exposures, make_admission(settings)), generator, signals)]
    )
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield router_service_pb2_grpc.RouterServiceStub(channel)
    await server.drain()
    await client.close()
    await answers.close()


def request(**fields) -> router_service_pb2.RecommendRequest:
    return router_service_pb2.RecommendRequest(**{"user_id": "u", "candidates": ["a", "b"], **fields})


async def failure(stub, message, timeout: float = 5.0) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Recommend(message, timeout=timeout)
    return caught.value.code(), caught.value.details()


async def test_packed_items_are_passed_on_and_logged_as_they_came(stub, recommender, exposures):
    response = await stub.Recommend(request(idempotency_key="k"), timeout=seconds(5))
    assert [item.item_id for item in response.items] == ["a", "b"] and list(response.items[1].task_scores) == [0.25, 0.75]
    assert (response.variant, response.model_version, list(response.task_names)) == ("default", "1.42", ["interact", "like"])
    record = exposure_pb2.Exposure.FromString(exposure_record(exposures.exposures[0]).value)
    assert (record.request_id, list(record.item_ids), record.features_block) == (response.request_id, ["a", "b"], b"\x01block")
    again = await stub.Recommend(request(idempotency_key="k"), timeout=seconds(5))
    assert again == response and len(recommender.requests) == len(exposures.exposures) == 1


async def test_an_answer_of_a_recommender_of_before_is_passed_on_whole_under_a_request_id_of_version_7(stub, recommender, exposures):
    recommender.is_new = False
    response = await stub.Recommend(request(idempotency_key="k"), timeout=seconds(5))
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", response.request_id)
    assert [item.item_id for item in response.items] == ["a", "b"]
    assert list(response.items[0].task_scores) == [0.25, 0.75] and list(response.items[0].reasons) == ["candidate"]
    assert (response.variant, response.model_version, list(response.task_names)) == ("default", "1.42", ["interact", "like"])
    logged = exposures.exposures[0].recommendation.ranking.logged
    assert (list(logged.item_ids), list(logged.scores), list(logged.reasons)) == (["a", "b"], [0.5, 0.5], ["candidate", "candidate"])
    assert recommender.requests[0].limit == 2
    exposure = exposures.exposures[0]
    assert (exposure.recommendation.request_id, exposure.idempotency_key) == (response.request_id, "k")
    assert exposure.recommendation.ranking.features_block == b"\x01block"


ALL_KINDS: dict[str, Any] = {
    "page": {"text": "home"},
    "hour": {"integer": 21},
    "price": {"number": 7.5},
    "is_app": {"boolean": False},
    "tags": {"texts": {"values": ["a", "b"]}},
    "embedding": {"numbers": {"values": [0.5, -1.25]}},
    "none": {"texts": {}},
}


async def test_context_and_profile_reach_the_recommender_and_the_log_as_they_came(stub, recommender, exposures):
    message = request(context=ALL_KINDS, profile={"age": {"integer": 31}})
    await stub.Recommend(message, timeout=seconds(5))
    asked = recommender.requests[0]
    assert (dict(asked.context), dict(asked.profile)) == (dict(message.context), dict(message.profile))
    logged = exposure_pb2.Exposure.FromString(exposure_record(exposures.exposures[0]).value)
    assert (dict(logged.context), dict(logged.profile)) == (dict(message.context), dict(message.profile))


@pytest.mark.parametrize(
    ("brought", "said"),
    [
        ({"context": {"page": {}}}, "context.page: it has no value; leave it out where there is none"),
        ({"context": {"hour": {"number": float("nan")}}}, "context.hour: nan is not finite"),
        ({"context": {"a\nb": {"integer": 1}}}, "context: the name 'a\\nb' has characters that cannot be printed"),
        ({"profile": {"bio": {"text": "x" * 16_385}}}, "profile.bio: it has 16385 bytes; a text has at most 16384"),
        ({"profile": {"v": {"numbers": {"values": [0.0] * 40_960}}}}, "profile.v: it has 40960 elements; a list has at most 4096"),
        ({"profile": {f"n{number}": {"integer": number} for number in range(10_240)}}, "profile: there are 10240; at most 1024"),
    ],
)
async def test_attributes_that_break_the_contract_are_refused_at_the_door(stub, recommender, brought, said):
    code, details = await failure(stub, request(**brought))
    assert code is grpc.StatusCode.INVALID_ARGUMENT and details.startswith(said)
    assert not recommender.requests


async def test_a_request_without_candidates_or_limit_asks_for_the_default_number(stub, recommender):
    await stub.Recommend(router_service_pb2.RecommendRequest(user_id="u"), timeout=seconds(5))
    assert (recommender.requests[0].limit, len(recommender.requests[0].candidates)) == (20, 0)


async def test_a_degraded_answer_says_why(stub, recommender):
    recommender.degraded_reason = "features_unavailable"
    assert (await stub.Recommend(request(), timeout=seconds(5))).degraded_reason == "features_unavailable"


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"user_id": ""}, "user_id"),
        ({"user_id": "x" * 129}, "user_id"),
        ({"candidates": ["a", "a"]}, "named twice"),
        ({"candidates": [str(number) for number in range(101)]}, "101 are more than the 100"),
        ({"limit": 101}, "limit: 101"),
        ({"idempotency_key": "k" * 129}, "idempotency_key"),
    ],
)
async def test_a_bad_request_is_invalid_argument_and_never_reaches_the_recommender(stub, recommender, fields, detail):
    code, text = await failure(stub, request(**fields))
    assert code is grpc.StatusCode.INVALID_ARGUMENT and detail in text
    assert recommender.requests == []


@pytest.mark.parametrize(
    ("status", "expected", "attempts"),
    [
        (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, 2),
        (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE, 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INVALID_ARGUMENT, 1),
        (grpc.StatusCode.INTERNAL, grpc.StatusCode.INTERNAL, 1),
    ],
)
async def test_each_failure_of_the_recommender_has_its_status(stub, recommender, exposures, status, expected, attempts):
    recommender.failures = [(status, "because"), (status, "because")]
    code, _ = await failure(stub, request())
    assert code is expected
    assert len(recommender.requests) == attempts
    assert exposures.exposures == []


async def test_one_unavailable_answer_is_mended_by_the_second_attempt(stub, recommender):
    recommender.failures = [(grpc.StatusCode.UNAVAILABLE, "restarting")]
    assert (await stub.Recommend(request(), timeout=seconds(5))).request_id
    assert len(recommender.requests) == 2


async def test_a_recommender_slower_than_the_routers_own_deadline_is_deadline_exceeded(stub, recommender):
    recommender.delay_s = 3.0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Recommend(request())
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "did not answer in" in caught.value.details()


async def test_a_callers_own_deadline_is_kept(stub, recommender):
    recommender.delay_s = 3.0
    code, _ = await failure(stub, request(), timeout=0.2)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_retry_with_the_same_key_gets_the_same_request_id(stub, recommender, exposures):
    first = await stub.Recommend(request(idempotency_key="k"), timeout=seconds(5))
    assert await stub.Recommend(request(idempotency_key="k"), timeout=seconds(5)) == first
    assert len(recommender.requests) == len(exposures.exposures) == 1


async def test_the_recommender_sees_the_callers_trace(stub, recommender):
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    await stub.Recommend(request(), timeout=seconds(5), metadata=(("traceparent", header),))
    assert recommender.metadata["traceparent"] == header


# The real process. Kafka is down in these: the router must serve all the same.


def environment(tmp_path, **overrides: str) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": NOWHERE,
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_ROUTER_SPOOL_DIR": str(tmp_path / "spool"),
        "TUNEMESH_ROUTER_PORT": "0",
        **overrides,
    }


async def test_a_process_without_kafka_serves_and_spools_and_drains_on_sigterm(tmp_path, recommender):
    target = f"127.0.0.1:{recommender.port}"
    with ServiceProcess("services.router", environment(tmp_path, TUNEMESH_ROUTER_RECOMMENDER_TARGET=target)) as process:
        port = await asyncio.to_thread(process.wait_ready)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="tunemesh.router.v1.RouterService"), timeout=seconds(5)
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            stub = router_service_pb2_grpc.RouterServiceStub(channel)
            responses = [await stub.Recommend(request(user_id=f"u{number}"), timeout=seconds(5)) for number in range(5)]
            # A call that runs when SIGTERM comes gets its answer.
            recommender.delay_s = 0.5
            running = asyncio.ensure_future(stub.Recommend(request(), timeout=seconds(5)))
            while len(recommender.requests) < 6:
                await asyncio.sleep(0.01)
            process.terminate()
            responses.append(await running)
        assert await asyncio.to_thread(process.wait) == 0
    spooled = b"".join(path.read_bytes() for path in (tmp_path / "spool").glob("*.spool"))
    assert all(response.request_id.encode() in spooled for response in responses)
    spans = read_spans(tmp_path / "telemetry")
    assert {span["name"] for span in spans} == {"router.Recommend"}
    assert {span["attributes"]["tunemesh.request_id"] for span in spans} == {response.request_id for response in responses}
    assert "Traceback" not in process.log


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TUNEMESH_ROUTER_PORT": "http"}, "TUNEMESH_ROUTER_PORT=http"),
        ({"TUNEMESH_ROUTER_MAX_CANDIDATE": "5"}, "did you mean TUNEMESH_ROUTER_MAX_CANDIDATES?"),
        ({"TUNEMESH_ROUTER_SPOOL_DIR": "/proc/none"}, "TUNEMESH_ROUTER_SPOOL_DIR"),
        ({"TUNEMESH_TELEMETRY_DIR": "/proc/none"}, "TUNEMESH_TELEMETRY_DIR"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(tmp_path, variables, expected):
    with ServiceProcess("services.router", environment(tmp_path, **variables)) as process:
        assert process.wait() == 2
    assert process.lines[-1].startswith("configuration error: ") and expected in process.lines[-1]
    assert "Traceback" not in process.log


def test_a_port_already_taken_says_which_port_and_which_setting(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with ServiceProcess("services.router", environment(tmp_path, TUNEMESH_ROUTER_PORT=str(port))) as process:
            assert process.wait() == 2
    assert f"127.0.0.1:{port}" in process.lines[-1] and "TUNEMESH_ROUTER_PORT" in process.lines[-1]
    assert process.lines[-1].startswith("configuration error: ") and "Traceback" not in process.log


@pytest.mark.parametrize("stub", [{"least_concurrent": 1, "most_concurrent": 1}], indirect=True)
async def test_a_request_too_many_is_refused_at_once_and_told_when_to_come_again(stub, recommender):
    recommender.delay_s = 60.0
    first = stub.Recommend(request(), timeout=300)
    while not recommender.requests:
        await asyncio.sleep(0.01)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Recommend(request(), timeout=300)
    error = error_of(caught.value, "Recommend", 1)
    assert isinstance(error, Overloaded) and error.retry_helps
    assert error.retry_after_s == pytest.approx(0.02)
    assert "the router sheds load: it works on 1, as many as are answered in time" in str(error)
    first.cancel()
    recommender.delay_s = 0.0
    while True:  # the cancelled one leaves a moment later
        try:
            assert (await stub.Recommend(request(), timeout=seconds(60))).items
            return
        except grpc.aio.AioRpcError as refused:
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await asyncio.sleep(0.02)
