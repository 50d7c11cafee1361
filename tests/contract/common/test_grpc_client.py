"""Channels of the mesh's own clients against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.platform import telemetry
from services.common.platform.grpc_client import open_blocking_channel, open_channel, service_error
from services.common.platform.grpc_server import STATUS_OF, GrpcServer, Servicer
from services.common.platform.settings import BaseServiceSettings
from tests.limits import seconds
from tests.slow_network import slow_to_connect

MIB = 1024 * 1024


class Echo(router_service_pb2_grpc.RouterServiceServicer):
    async def Recommend(self, request, context):
        return router_service_pb2.RecommendResponse(request_id=request.user_id)


@pytest.fixture
async def target() -> AsyncIterator[str]:
    echo = Servicer(
        descriptor=router_service_pb2.DESCRIPTOR.services_by_name["RouterService"],
        implementation=Echo(),
        register=router_service_pb2_grpc.add_RouterServiceServicer_to_server,
    )
    server = GrpcServer(BaseServiceSettings(port=0, max_message_bytes=16 * MIB), telemetry.disabled("router"), [echo])
    yield f"127.0.0.1:{await server.start()}"
    await server.drain()


async def sent_and_received(target: str, num_bytes: int, **options) -> int:
    async with open_channel(target, **options) as channel:
        request = router_service_pb2.RecommendRequest(user_id="u" * num_bytes)
        response = await router_service_pb2_grpc.RouterServiceStub(channel).Recommend(request, timeout=seconds(30))
    return len(response.request_id)


async def test_a_channel_takes_messages_up_to_its_limit(target) -> None:
    assert await sent_and_received(target, 6 * MIB, max_message_bytes=8 * MIB) == 6 * MIB


@pytest.mark.parametrize("options", [{}, {"max_message_bytes": 5 * MIB}, {"own_connection": True}])
async def test_a_message_over_a_channels_limit_is_refused(target, options) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await sent_and_received(target, 6 * MIB, **options)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_thread_that_waits_calls_the_same_server(target) -> None:
    def call() -> str:
        with open_blocking_channel(target) as channel:
            request = router_service_pb2.RecommendRequest(user_id="alice")
            return router_service_pb2_grpc.RouterServiceStub(channel).Recommend(request, timeout=seconds(30)).request_id

    assert await asyncio.to_thread(call) == "alice"


async def test_a_connection_that_takes_long_to_be_made_is_waited_for(target) -> None:
    async with slow_to_connect(int(target.rpartition(":")[2]), 1.5) as port:
        assert await sent_and_received(f"127.0.0.1:{port}", 1) == 1


@pytest.mark.parametrize(("kind", "status"), STATUS_OF.items())
def test_a_client_gets_the_error_that_the_server_raised(kind, status) -> None:
    error = service_error(status, "why")
    assert type(error) is kind
    assert str(error) == "why"


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED])
def test_a_status_that_no_core_raises_is_unavailable(status) -> None:
    assert type(service_error(status, "why")).__name__ == "Unavailable"
