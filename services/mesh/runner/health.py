"""Asks a gRPC server on this host for its health: `python -m services.mesh.runner.health PORT` (exit code 0: SERVING). Compose uses it.

Imports the standard library only, since a container runs it every few seconds: gRPC's own client takes 0.1 s of a processor for its import
alone. So it speaks the little HTTP/2 that one call of grpc.health.v1.Health/Check needs (RFC 9113; gRPC over HTTP/2).
"""

from __future__ import annotations

import socket
import sys
import time

LOOPBACK = "127.0.0.1"

# grpc.health.v1.HealthCheckResponse.ServingStatus
_STATUS = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS, _PADDED, _ACK = 1, 4, 8, 1
_STREAM = 1
# The answer to a check is some hundred bytes.
MAX_ANSWER_BYTES = 64 * 1024


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _text(value: str) -> bytes:
    """HPACK's plain string; RFC 7541, section 5.2."""
    return bytes((len(value),)) + value.encode()


# Indexed fields (:method POST, :scheme http), literals whose names are indexed (:path, :authority, content-type), and one that is not.
_FIELDS = (
    bytes((0x83, 0x86, 0x04))
    + _text("/grpc.health.v1.Health/Check")
    + b"\x01"
    + _text("localhost")
    + b"\x0f\x10"
    + _text("application/grpc")
    + b"\x00"
    + _text("te")
    + _text("trailers")
)
# The request message is empty: the health of the whole server.
REQUEST = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(_SETTINGS, 0, 0, b"")
    + _frame(_HEADERS, _END_HEADERS, _STREAM, _FIELDS)
    + _frame(_DATA, _END_STREAM, _STREAM, bytes(5))
)
FAREWELL = _frame(_SETTINGS, _ACK, 0, b"") + _frame(_GOAWAY, 0, 0, bytes(8))


class NoAnswer(Exception):
    """What came is no answer of a gRPC health service."""


def probe(port: int, *, timeout_s: float = 2.0) -> str | None:
    """Return the server's status by name (SERVING, NOT_SERVING, …), or None when nobody answers on the loopback port. Blocks."""
    deadline = time.monotonic() + timeout_s
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout_s) as connection:
            connection.sendall(REQUEST)
            received = b""
            while True:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                part = connection.recv(4096)
                received += part
                status = status_in(received)
                if status is not None:
                    connection.sendall(FAREWELL)
                    return status
                if not part or len(received) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                    return None
    except (OSError, NoAnswer):
        return None


def status_in(received: bytes) -> str | None:
    """Return the status in what a server has sent so far; None: it has not come yet.

    Raises:
        NoAnswer: it will not come: another protocol, an error of the call, an unknown status.
    """
    at, message = 0, b""
    while len(received) - at >= 9:
        size, kind, flags = int.from_bytes(received[at : at + 3], "big"), received[at + 3], received[at + 4]
        stream = int.from_bytes(received[at + 5 : at + 9], "big") & 0x7FFFFFFF
        if at == 0 and kind != _SETTINGS:
            raise NoAnswer("the first frame is no SETTINGS: this is not HTTP/2")
        payload = received[at + 9 : at + 9 + size]
        if len(payload) < size:
            return None
        at += 9 + size
        if kind in (_GOAWAY, _RST_STREAM):
            raise NoAnswer("the server refused the call")
        if stream != _STREAM:
            continue
        if kind == _DATA:
            message += payload[1 : max(len(payload) - payload[0], 1)] if flags & _PADDED and payload else payload
        if len(message) >= 5 and len(message) >= 5 + int.from_bytes(message[1:5], "big"):
            return _status_of(message)
        if flags & _END_STREAM:
            raise NoAnswer("the call ended without a message")
    return None


def _status_of(message: bytes) -> str:
    """Read a HealthCheckResponse: nothing (UNKNOWN), or its one field, a number below 128."""
    body = message[5 : 5 + int.from_bytes(message[1:5], "big")]
    if message[0] != 0 or (body and (len(body) != 2 or body[0] != 0x08 or body[1] >= len(_STATUS))):
        raise NoAnswer("the message is no HealthCheckResponse")
    return _STATUS[body[1] if body else 0]


def main(argv: list[str]) -> int:
    """Return 0 when the server on port `argv[1]` is SERVING, else 1 and say what it is."""
    if len(argv) != 2 or not argv[1].isdigit() or not 0 < int(argv[1]) < 65536:
        print("usage: python -m services.mesh.runner.health PORT", file=sys.stderr)
        return 2
    status = probe(int(argv[1]), timeout_s=3.0)
    if status is None:
        print(f"no answer on port {argv[1]}", file=sys.stderr)
        return 1
    print(status)
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
