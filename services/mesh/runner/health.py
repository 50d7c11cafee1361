"""Asks a gRPC server on this host for its health: `python -m services.mesh.runner.health PORT` (exit code 0: SERVING). Compose uses it."""

from __future__ import annotations

import sys

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.platform.grpc_client import open_blocking_channel, open_channel

LOOPBACK = "127.0.0.1"


async def probe(port: int, *, timeout_s: float = 2.0) -> str | None:
    """Return the server's status by name (SERVING, NOT_SERVING, …), or None when nobody answers on the loopback port."""
    # A channel of its own for each probe: a kept one backs off for seconds after a restart of the server.
    async with open_channel(f"{LOOPBACK}:{port}", own_connection=True) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return None
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(argv: list[str]) -> int:
    """Return 0 when the server on port `argv[1]` is SERVING, else 1 and say what it is."""
    if len(argv) != 2 or not argv[1].isdigit():
        print("usage: python -m services.mesh.runner.health PORT", file=sys.stderr)
        return 2
    with open_blocking_channel(f"{LOOPBACK}:{argv[1]}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3.0)
        except grpc.RpcError as error:
            print(f"no answer on port {argv[1]}: {error}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(status)
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
