"""The gRPC server runner with a real server on port 0: statuses, health, reflection, drain, a port already taken."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.platform import telemetry
from services.common.platform.errors import ConfigurationError, Conflict, InvalidInput, NotFound, Overloaded, ServiceError, Unavailable
from services.common.platform.grpc_server import EdgeInterceptor, GrpcServer, Servicer, serve
from services.common.platform.settings import BaseServiceSettings
from services.common.platform.traceparent import current_traceparent
from tests.limits import seconds

NAME = "tunemesh.router.v1.RouterService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class NoSuchUser(NotFound):
    """A core's own error."""


class Probe(router_service_pb2_grpc.RouterServiceServicer):
    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        self.traceparent = ""

    async def Recommend(self, request, context):
        self.entered.set()
        self.traceparent = current_traceparent()
        await self.release.wait()
        if self.error is not None:
            raise self.error
        return router_service_pb2.RecommendResponse(request_id=request.user_id)


def servicer(probe: Probe) -> Servicer:
    return Servicer(
        descriptor=router_service_pb2.DESCRIPTOR.services_by_name["RouterService"],
        implementation=probe,
        register=router_service_pb2_grpc.add_RouterServiceServicer_to_server,
    )


@pytest.fixture
async def probe() -> Probe:
    return Probe()


@pytest.fixture
async def server(probe: Probe) -> AsyncIterator[GrpcServer]:
    server = GrpcServer(BaseServiceSettings(port=0, drain_grace_ms=30_000), telemetry.disabled("router"), [servicer(probe)])
    await server.start()
    yield server
    await server.drain()


@pytest.fixture
async def channel(server: GrpcServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


async def recommend(channel, **options):
    return await router_service_pb2_grpc.RouterServiceStub(channel).Recommend(
        router_service_pb2.RecommendRequest(user_id="u"), timeout=seconds(10), **options
    )


async def health(channel, name):
    return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=seconds(10))).status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInput("user_id is empty"), grpc.StatusCode.INVALID_ARGUMENT),
        (NotFound("no such user"), grpc.StatusCode.NOT_FOUND),
        (NoSuchUser("no such user"), grpc.StatusCode.NOT_FOUND),
        (Conflict("read again"), grpc.StatusCode.FAILED_PRECONDITION),
        (Unavailable("retry later"), grpc.StatusCode.UNAVAILABLE),
        (Overloaded("slower"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (ServiceError("odd"), grpc.StatusCode.UNKNOWN),
    ],
)
async def test_each_error_of_a_core_has_its_status_and_keeps_its_message(channel, probe, error, status):
    probe.error = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await recommend(channel)
    assert (caught.value.code(), caught.value.details()) == (status, str(error))


async def test_an_error_that_quotes_a_long_request_has_its_status_too(channel, probe):
    """gRPC gives up a call whose details are larger than its metadata may be: the caller would see another status, or none."""
    probe.error = InvalidInput(f"user_id: {'u' * 100_000} is too long")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await recommend(channel)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("user_id: uuu") and caught.value.details().endswith("uuu is too long")


async def test_a_defect_is_internal_with_the_traceback_in_the_log_and_not_at_the_caller(channel, probe, caplog):
    probe.error = KeyError("secret detail")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await recommend(channel)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret detail" not in caught.value.details()
    assert "secret detail" in caplog.text and "Traceback" in caplog.text


async def test_an_unknown_method_is_unimplemented(channel):
    call = channel.unary_unary(f"/{NAME}/Nothing")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", timeout=seconds(10))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused(probe):
    server = GrpcServer(BaseServiceSettings(port=0, max_message_bytes=2048), telemetry.disabled("router"), [servicer(probe)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router_service_pb2_grpc.RouterServiceStub(channel).Recommend(
                router_service_pb2.RecommendRequest(user_id="u" * 4096), timeout=seconds(10)
            )
    await server.drain()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_health_answers_for_the_service_and_for_the_whole_and_can_be_turned(server, channel):
    assert await health(channel, NAME) == SERVING
    assert await health(channel, "") == SERVING
    await server.set_serving(False)
    assert await health(channel, NAME) == NOT_SERVING
    assert await health(channel, "") == NOT_SERVING
    await asyncio.to_thread(server.set_serving_threadsafe, True)
    await asyncio.sleep(0.05)
    assert await health(channel, NAME) == SERVING


async def test_health_of_an_unknown_service_is_not_found(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(channel, "tunemesh.nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_can_be_watched(server, channel):
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME), timeout=seconds(10))
    assert (await call.read()).status == SERVING
    await server.set_serving(False)
    assert (await call.read()).status == NOT_SERVING
    call.cancel()


async def test_reflection_lists_the_service_and_describes_it(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests), timeout=seconds(10))]
    assert {NAME, "grpc.health.v1.Health"} <= {service.name for service in answers[0].list_services_response.service}
    assert answers[1].file_descriptor_response.file_descriptor_proto


async def test_a_process_without_an_api_serves_health_under_its_name():
    server = GrpcServer(BaseServiceSettings(port=0), telemetry.disabled("updater"))
    port = await server.start(serving=False)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await health(channel, "tunemesh.updater") == NOT_SERVING
        await server.set_serving(True)
        assert await health(channel, "tunemesh.updater") == SERVING
        assert await health(channel, "") == SERVING
    await server.drain()


async def test_a_port_already_taken_is_named_together_with_the_setting(server):
    second = GrpcServer(BaseServiceSettings(port=server.port), telemetry.disabled("router"))
    with pytest.raises(ConfigurationError) as caught:
        await second.start()
    assert f"127.0.0.1:{server.port}" in str(caught.value) and "PORT" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_drain_lets_the_running_call_end_and_refuses_new_ones(server, channel, probe):
    probe.release.clear()
    running = asyncio.ensure_future(recommend(channel))
    await probe.entered.wait()
    drain = asyncio.ensure_future(server.drain())
    await asyncio.sleep(0.1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as late:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await recommend(late)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    probe.release.set()
    assert (await running).request_id == "u"
    await drain


async def test_a_call_longer_than_the_grace_is_cut_off(probe):
    server = GrpcServer(BaseServiceSettings(port=0, drain_grace_ms=100), telemetry.disabled("router"), [servicer(probe)])
    port = await server.start()
    probe.release.clear()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        running = asyncio.ensure_future(recommend(channel))
        await probe.entered.wait()
        await asyncio.wait_for(server.drain(), seconds(20))
        with pytest.raises(grpc.aio.AioRpcError):
            await running


async def test_sigterm_drains_runs_the_hook_and_returns(probe):
    events: list[str] = []

    async def on_drain() -> None:
        events.append("drained")

    settings = BaseServiceSettings(port=0, drain_grace_ms=100)
    asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serve([servicer(probe)], settings, telemetry.disabled("router"), on_drain=on_drain), seconds(20))
    assert events == ["drained"]


async def test_work_beside_the_server_that_fails_ends_the_process_with_its_error(probe):
    drained = asyncio.Event()

    async def work(server: GrpcServer) -> None:
        assert server.port
        raise RuntimeError("the worker broke")

    async def on_drain() -> None:
        drained.set()

    settings = BaseServiceSettings(port=0, drain_grace_ms=100)
    with pytest.raises(RuntimeError, match="the worker broke"):
        await asyncio.wait_for(serve([servicer(probe)], settings, telemetry.disabled("router"), on_drain=on_drain, main=work), seconds(20))
    assert drained.is_set()


async def test_a_call_continues_the_callers_trace(channel, probe):
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    await recommend(channel, metadata=(("traceparent", header),))
    assert probe.traceparent == header


async def test_every_kind_of_streaming_call_maps_its_errors():
    async def source(_):
        yield b"one"
        raise InvalidInput("bad stream")

    async def sink(requests, _):
        async for _request in requests:
            raise Overloaded("enough")

    async def both(requests, _):
        async for request in requests:
            yield request
            raise Unavailable("gone")

    handlers = {
        "Source": grpc.unary_stream_rpc_method_handler(lambda request, context: source(request)),
        "Sink": grpc.stream_unary_rpc_method_handler(sink),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    server = grpc.aio.server(interceptors=[EdgeInterceptor(telemetry.disabled("probe"))])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Probe", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def codes(call) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if hasattr(call, "read"):
                assert await call.read() == b"one"
                await call.read()
            else:
                await call
        return caught.value.code()

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await codes(channel.unary_stream("/t.Probe/Source")(b"")) is grpc.StatusCode.INVALID_ARGUMENT
        assert await codes(channel.stream_unary("/t.Probe/Sink")(iter([b"x"]))) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await codes(channel.stream_stream("/t.Probe/Both")(iter([b"one"]))) is grpc.StatusCode.UNAVAILABLE
    await server.stop(None)


async def test_a_streaming_call_that_is_cancelled_ends_its_handler_at_once_and_leaves_no_complaint(caplog):
    ended: list[str] = []

    async def source(_request, _context):
        try:
            while True:
                yield b"x" * 1_000
        finally:
            ended.append(current_traceparent())

    handlers = {"Source": grpc.unary_stream_rpc_method_handler(source)}
    server = grpc.aio.server(interceptors=[EdgeInterceptor(telemetry.disabled("probe"))])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Probe", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for number in range(1, 11):
            call = channel.unary_stream("/t.Probe/Source")(b"", metadata=(("traceparent", header),))
            await call.read()
            call.cancel()
            async with asyncio.timeout(seconds(20)):
                while len(ended) < number:
                    await asyncio.sleep(0.001)
    await server.stop(None)
    assert set(ended) == {header} and "Failed to detach context" not in caplog.text
