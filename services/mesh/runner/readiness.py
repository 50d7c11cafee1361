"""Asks a running process of the mesh how it is: a gRPC health check, an embedded server's own sign, or a command.

Knows nothing about restarts; `supervised` asks again and again, and acts on the answers.
"""

from __future__ import annotations

import asyncio
import signal

import psutil

from services.mesh.runner import embedded, health
from services.mesh.runner.plan import Process, Ready
from services.mesh.runner.state import State, kill


async def check(ready: Ready, process: Process) -> State | None:
    """Return the state that a running process shows, or None when it does not answer."""
    if ready.kind == "alive":
        return "healthy"
    if ready.kind == "grpc":
        status = await grpc_status(ready.port, timeout_s=ready.timeout_s)
        return None if status is None else "healthy" if status == "SERVING" else "not_serving"
    if ready.kind == "command":
        return "healthy" if await _succeeds(ready, process) else None
    probes = {
        "broker": embedded.broker_ready,
        "redis": embedded.redis_ready,
        "triton": embedded.triton_ready,
        "mlflow": embedded.mlflow_ready,
    }
    return "healthy" if await asyncio.to_thread(probes[ready.kind], ready.port) else None


async def grpc_status(port: int, *, timeout_s: float) -> str | None:
    """As `health.probe`, on the event loop: a service that is slow to answer must not hold up the questions to the others."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(health.LOOPBACK, port)
            try:
                writer.write(health.REQUEST)
                received = b""
                while part := await reader.read(4096):
                    received += part
                    status = health.status_in(received)
                    if status is not None:
                        writer.write(health.FAREWELL)
                        return status
                    if len(received) > health.MAX_ANSWER_BYTES:
                        return None
                return None
            finally:
                writer.close()
    except (OSError, TimeoutError, health.NoAnswer):
        return None


def has_dead_child(pid: int) -> bool:
    """Whether a child of the process has ended without being waited for; False when the process itself is gone."""
    try:
        return any(child.status() == psutil.STATUS_ZOMBIE for child in psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return False


async def _succeeds(ready: Ready, process: Process) -> bool:
    """Run a health command; it counts as failed when it takes longer than its timeout."""
    child = await asyncio.create_subprocess_exec(
        *ready.command,
        env=dict(process.env),
        cwd=process.cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(ready.timeout_s):
            return await child.wait() == 0
    except TimeoutError:
        return False
    finally:
        if child.returncode is None:
            kill(child.pid, signal.SIGKILL, group=True)
            await child.wait()
