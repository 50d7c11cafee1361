"""A closed loop over HTTP/1.1: so many connections that each wait for an answer before they ask again, at next to no cost of their own.

Answers with a length or in chunks (RFC 9112); connections stay open. The server is trusted; no TLS, no retries.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

_HEAD_END = b"\r\n\r\n"
_MAX_HEAD_BYTES = 64 * 1024


class CallFailed(Exception):
    """An answer is no 200, is none that can be read, or did not come."""


def request(path: str, host: str, body: bytes) -> bytes:
    """Return the bytes of a POST of JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


async def run(
    host: str,
    port: int,
    requests: Iterator[bytes],
    *,
    at_once: int,
    check: Callable[[bytes], None],
    took_s: list[float] | None = None,
    failed: list[str] | None = None,
) -> None:
    """Ask until the requests end.

    Args:
        host, port: of the server.
        requests: whole requests, as `request` makes them.
        at_once: connections.
        check: looks at each body; may raise CallFailed.
        took_s: how long each answer took that `check` let pass is appended here.
        failed: what became of each request that has no such answer is appended here, and the others go on; None: it ends the run.
    Raises:
        CallFailed: a request has no answer, or a connection cannot be opened.
    """
    connections = [asyncio.ensure_future(_connection(host, port, requests, check, took_s, failed)) for _ in range(at_once)]
    try:
        await asyncio.gather(*connections)
    finally:
        for connection in connections:
            connection.cancel()


async def _connection(
    host: str,
    port: int,
    requests: Iterator[bytes],
    check: Callable[[bytes], None],
    took_s: list[float] | None,
    failed: list[str] | None,
) -> None:
    while (message := next(requests, None)) is not None:
        try:
            reader, writer = await asyncio.open_connection(host, port, limit=_MAX_HEAD_BYTES)
        except OSError as error:
            raise CallFailed(f"no connection to {host}:{port}: {error}") from error
        try:
            while message is not None:
                began = time.perf_counter()
                writer.write(message)
                body = await _answer(reader)
                took = time.perf_counter() - began
                check(body)
                if took_s is not None:
                    took_s.append(took)
                message = next(requests, None)
        except (OSError, EOFError, asyncio.LimitOverrunError, CallFailed) as error:
            failure = error if isinstance(error, CallFailed) else CallFailed(f"the connection ended: {error!r}")
            if failed is None:
                raise failure from error
            failed.append(str(failure))
        finally:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(_HEAD_END)
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    elif fields.get("transfer-encoding", "").lower() == "chunked":
        body = await _chunks(reader)
    else:
        raise CallFailed(f"an answer says neither how long it is nor that it comes in chunks: {status}")
    if status.split(" ")[1] != "200":
        raise CallFailed(f"{status}: {body[:500].decode(errors='replace')}")
    return body


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return body
