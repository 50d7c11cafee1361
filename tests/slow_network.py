"""A network between client and server over which a connection takes long to be made, and is quick afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def slow_to_connect(port: int, delay_s: float) -> AsyncIterator[int]:
    """Yield a port of this machine that passes everything on to `port`; the first bytes of each connection wait for so long.

    So does a handshake over a long way with TLS, or with a server whose processor is busy: the connection is there, and says nothing yet.
    """
    under_way: set[asyncio.Task[None]] = set()

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:  # one side has gone away
            pass
        finally:
            writer.close()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        try:
            await asyncio.sleep(delay_s)
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(passed_on(reader, there_writer), passed_on(there_reader, writer))
        finally:
            writer.close()

    server = await asyncio.start_server(joined, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(under_way):
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
