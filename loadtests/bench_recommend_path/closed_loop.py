"""A closed loop over one HTTP/2 connection: so many gRPC calls at any time, and next to no processor time of its own.

grpc.aio's client takes as long for a call as all of the router; on a machine with as many cores as the measured service uses, requests a
second would then be the client's. This one writes the same headers for each call and looks at frames only as far as it must: a call has
succeeded when a whole message came and the stream ended. Unary calls to a server that is trusted; no TLS, no retries.
Source: RFC 9113 (frames), RFC 7541 (headers: literals without indexing), gRPC over HTTP/2.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Iterator

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_HEAD_BYTES = 9
_FIRST_WINDOW = 65_535
_LARGE_WINDOW = (1 << 30) - _FIRST_WINDOW
_INITIAL_WINDOW_SETTING = 4


class CallFailed(Exception):
    """The server ended a call without a message, or the connection."""


class _Loop(asyncio.Protocol):
    def __init__(
        self, path: str, authority: str, messages: Iterator[bytes], at_once: int, check: Callable[[bytes], None], took_s: list[float] | None
    ) -> None:
        self._headers = _headers(path, authority)
        self._messages, self._at_once, self._check = messages, at_once, check
        self._next_stream, self._window = 1, _FIRST_WINDOW
        self._waiting: list[bytes] = []
        self._answers: dict[int, bytearray] = {}
        self._took_s, self._began_s = took_s, dict[int, float]()
        self._unread = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SETTING, (1 << 31) - 1))
        transport.write(_PREFACE + settings + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGE_WINDOW)))
        for _ in range(self._at_once):
            self._call_next()

    def data_received(self, data: bytes) -> None:
        data = self._unread + data if self._unread else data
        at = 0
        try:
            while len(data) - at >= _HEAD_BYTES:
                size = int.from_bytes(data[at : at + 3], "big")
                end = at + _HEAD_BYTES + size
                if end > len(data):
                    break
                stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
                self._take(data[at + 3], data[at + 4], stream, data[at + _HEAD_BYTES : end])
                at = end
        except Exception as error:  # noqa: BLE001 - the caller of `run` is told, whatever it is
            self._end(error)
        self._unread = data[at:]

    def connection_lost(self, error: Exception | None) -> None:
        self._end(CallFailed(f"the connection was closed: {error}"))

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._answers[stream] += payload
        elif kind == _SETTINGS and not flags & _ACK:
            self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
            while self._waiting and self._window >= len(self._waiting[0]):
                self._write(self._waiting.pop(0))
        elif kind in (_RST_STREAM, _GOAWAY):
            raise CallFailed(f"the server ended stream {stream}: frame {kind}, {payload!r}")
        if flags & _END_STREAM and kind in (_DATA, _HEADERS):
            self._ended(stream)

    def _ended(self, stream: int) -> None:
        answer = bytes(self._answers.pop(stream))
        if self._took_s is not None:
            self._took_s.append(time.perf_counter() - self._began_s.pop(stream))
        if len(answer) < 5 or len(answer) != 5 + int.from_bytes(answer[1:5], "big"):
            raise CallFailed(f"a call ended with {len(answer)} bytes, which are no message; the server's log may say why")
        self._check(answer[5:])
        self._call_next()

    def _call_next(self) -> None:
        message = next(self._messages, None)
        if message is not None:
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            self._answers[stream] = bytearray()
            if self._took_s is not None:
                self._began_s[stream] = time.perf_counter()
            data = _frame(_DATA, _END_STREAM, stream, b"\x00" + struct.pack(">I", len(message)) + message)
            request = _frame(_HEADERS, _END_HEADERS, stream, self._headers) + data
            # The whole request is counted, a little more than the window is for.
            if self._waiting or self._window < len(request):
                self._waiting.append(request)
            else:
                self._write(request)
        elif not self._answers:
            self._end(None)

    def _write(self, request: bytes) -> None:
        self._window -= len(request)
        self._transport.write(request)

    def _end(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _headers(path: str, authority: str) -> bytes:
    """Return the header block: :method POST and :scheme http from the static table, the others as literals."""

    def text(value: str) -> bytes:
        raw = value.encode()
        assert len(raw) < 127, f"{value!r} is too long for a length of one byte"
        return bytes([len(raw)]) + raw

    named = [b"\x04" + text(path), b"\x01" + text(authority), b"\x0f\x10" + text("application/grpc")]
    others = [b"\x00" + text(name) + text(value) for name, value in (("te", "trailers"), ("grpc-timeout", "60S"))]
    return b"\x83\x86" + b"".join(named + others)


async def run(
    host: str,
    port: int,
    path: str,
    messages: Iterator[bytes],
    *,
    at_once: int,
    check: Callable[[bytes], None],
    took_s: list[float] | None = None,
) -> None:
    """Call until the messages end, `at_once` calls at any time.

    Args:
        host, port: of the server.
        path: e.g. "/tunemesh.router.v1.RouterService/Recommend".
        messages: serialised requests.
        at_once: calls under way at any time.
        check: looks at each serialised answer; what it raises ends the run.
        took_s: how long each call took is appended here.
    Raises:
        CallFailed: a call has no answer.
    """
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(lambda: _Loop(path, f"{host}:{port}", messages, at_once, check, took_s), host, port)
    try:
        await protocol.done
    finally:
        transport.close()
