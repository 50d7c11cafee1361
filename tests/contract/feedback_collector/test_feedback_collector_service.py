"""FeedbackCollectorService over real gRPC: in process with a fake log, and as a real process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunemesh.events.v1 import feedback_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2, feedback_collector_service_pb2_grpc

from services.common.platform import telemetry
from services.common.platform.errors import Overloaded, Unavailable
from services.common.platform.grpc_server import GrpcServer
from services.feedback_collector.server import make_collector, servicer_of
from services.feedback_collector.settings import FeedbackCollectorSettings
from tests.edge_fakes import FakeFeedbackLog, ServiceProcess
from tests.limits import seconds


def feedback(number: int = 1, **fields) -> feedback_pb2.Feedback:
    values = {"feedback_id": f"f{number}", "request_id": "r", "user_id": "u", "item_id": "i", "kind": "rating", "value": 4.0, **fields}
    return feedback_pb2.Feedback(**values)


def request(*items: feedback_pb2.Feedback) -> feedback_collector_service_pb2.SubmitFeedbackRequest:
    return feedback_collector_service_pb2.SubmitFeedbackRequest(feedback=items)


@pytest.fixture
def log() -> FakeFeedbackLog:
    return FakeFeedbackLog()


@pytest.fixture
async def stub(log) -> AsyncIterator[feedback_collector_service_pb2_grpc.FeedbackCollectorServiceStub]:
    settings = FeedbackCollectorSettings(port=0, drain_grace_ms=100)
    signals = telemetry.disabled("feedback_collector")
    server = GrpcServer(settings, signals, [servicer_of(make_collector(settings, log), signals)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield feedback_collector_service_pb2_grpc.FeedbackCollectorServiceStub(channel)
    await server.drain()


async def test_every_item_gets_a_receipt_in_order_and_every_field_is_kept(stub, log):
    response = await stub.SubmitFeedback(request(feedback(1, original_time_ms=9), feedback(2)), timeout=seconds(5))
    assert [receipt.feedback_id for receipt in response.receipts] == ["f1", "f2"]
    assert all(
        receipt.accepted_at_ms >= written.accepted_at_ms > 0 for receipt, written in zip(response.receipts, log.written, strict=True)
    )
    first = log.written[0]
    assert (first.request_id, first.user_id, first.item_id, first.kind, first.value, first.original_time_ms) == (
        "r",
        "u",
        "i",
        "rating",
        4.0,
        9,
    )


async def test_a_demonstration_keeps_its_text(stub, log):
    await stub.SubmitFeedback(request(feedback(1, kind="demonstration", item_id="", value=0.0, text="In 1995.")), timeout=seconds(5))
    assert (log.written[0].kind, log.written[0].text, log.written[0].item_id) == ("demonstration", "In 1995.", "")


async def test_a_repeat_is_marked_and_keeps_its_first_time(stub, log):
    first = await stub.SubmitFeedback(request(feedback()), timeout=seconds(5))
    again = await stub.SubmitFeedback(request(feedback()), timeout=seconds(5))
    assert not first.receipts[0].duplicate and again.receipts[0].duplicate
    assert again.receipts[0].accepted_at_ms == first.receipts[0].accepted_at_ms
    assert len(log.written) == 1


@pytest.mark.parametrize(
    ("items", "detail"),
    [
        ([], "0 items; one call takes 1 to 100"),
        ([feedback(number) for number in range(101)], "101 items"),
        ([feedback(user_id="")], "feedback[0].user_id"),
        ([feedback(), feedback(2, value=float("inf"))], "feedback[1].value"),
        ([feedback(accepted_at_ms=5)], "feedback[0].accepted_at_ms"),
    ],
)
async def test_bad_feedback_is_invalid_argument_names_the_field_and_writes_nothing(stub, log, items, detail):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SubmitFeedback(request(*items), timeout=seconds(5))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and detail in caught.value.details()
    assert log.written == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(Unavailable("down"), grpc.StatusCode.UNAVAILABLE), (Overloaded("full"), grpc.StatusCode.RESOURCE_EXHAUSTED)],
)
async def test_what_the_broker_did_not_take_is_told_and_a_retry_succeeds(stub, log, error, status):
    log.failures = [error]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SubmitFeedback(request(feedback()), timeout=seconds(5))
    assert caught.value.code() is status
    assert not (await stub.SubmitFeedback(request(feedback()), timeout=seconds(5))).receipts[0].duplicate


# The real process.


def environment(tmp_path, **overrides: str) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_FEEDBACK_COLLECTOR_PORT": "0",
        **overrides,
    }


async def test_a_process_without_kafka_is_unavailable_at_once_and_drains_on_sigterm(tmp_path):
    with ServiceProcess("services.feedback_collector", environment(tmp_path)) as process:
        port = await asyncio.to_thread(process.wait_ready)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="tunemesh.feedback_collector.v1.FeedbackCollectorService"), timeout=seconds(5)
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            stub = feedback_collector_service_pb2_grpc.FeedbackCollectorServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.SubmitFeedback(request(feedback()), timeout=seconds(5))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and "127.0.0.1:1" in caught.value.details()
        process.terminate()
        assert await asyncio.to_thread(process.wait) == 0
    assert "Traceback" not in process.log


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TUNEMESH_FEEDBACK_COLLECTOR_MAX_BATCH": "0"}, "TUNEMESH_FEEDBACK_COLLECTOR_MAX_BATCH=0"),
        ({"TUNEMESH_FEEDBACK_COLLECTOR_PROT": "5"}, "did you mean TUNEMESH_FEEDBACK_COLLECTOR_PORT?"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(tmp_path, variables, expected):
    with ServiceProcess("services.feedback_collector", environment(tmp_path, **variables)) as process:
        assert process.wait() == 2
    assert process.lines[-1].startswith("configuration error: ") and expected in process.lines[-1]
    assert len(process.lines) == 1


def test_a_port_already_taken_says_which_port_and_which_setting(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with ServiceProcess("services.feedback_collector", environment(tmp_path, TUNEMESH_FEEDBACK_COLLECTOR_PORT=str(port))) as process:
            assert process.wait() == 2
    assert f"127.0.0.1:{port}" in process.lines[-1] and "TUNEMESH_FEEDBACK_COLLECTOR_PORT" in process.lines[-1]
    assert process.lines[-1].startswith("configuration error: ") and "Traceback" not in process.log
