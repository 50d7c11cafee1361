"""A scripted mesh on a port of its own, and a client of each way for it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.client_fakes import WAYS, ScriptedMesh, start_mesh
from tunemesh_client import RetryPolicy

QUICK = RetryPolicy(retries=5, first_pause_s=0.001, max_pause_s=0.002)


@pytest.fixture
def mesh() -> ScriptedMesh:
    return ScriptedMesh()


@pytest.fixture
async def port(mesh) -> AsyncIterator[int]:
    server, port = await start_mesh(mesh)
    yield port
    await server.stop(None)


@pytest.fixture(params=sorted(WAYS))
async def make(request, port) -> AsyncIterator[Callable[..., Any]]:
    """`make(retry=…)` returns a client of that way for the scripted mesh."""
    async with contextlib.AsyncExitStack() as stack:

        def open_client(**options: Any) -> Any:
            options.setdefault("retry", QUICK)
            address = options.pop("address", f"127.0.0.1:{port}")
            client = WAYS[request.param](address, address, **options)
            stack.push_async_callback(client.close)
            return client

        yield open_client
