"""Channels to other processes' gRPC servers, and what the status of a failed call means. Knows no service.

Every channel is opened here, so that all of them take messages of one size and find a server that came back within a second.
"""

from __future__ import annotations

import grpc
import grpc.aio

from services.common.platform.errors import Conflict, DeadlineExceeded, InvalidInput, NotFound, Overloaded, ServiceError, Unavailable

_ERROR_OF: dict[grpc.StatusCode, type[ServiceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}

# gRPC's own pause between attempts to connect grows to two minutes: a server that came back would stay unseen for that long. What it calls
# the least backoff is no pause but the time that an attempt gets, handshakes included: a busy server, or one far away, needs more than a
# pause. tunemesh_client/channels.py has the same, for callers.
RECONNECT_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),
)


def open_channel(target: str, *, max_message_bytes: int | None = None, own_connection: bool = False) -> grpc.aio.Channel:
    """Return a channel to `target` (host:port). It connects with the first call. Must be opened on the event loop that uses it.

    Args:
        target: host:port, or any name that gRPC resolves.
        max_message_bytes: of one message, either way; None: 4 MiB received and any size sent, which is what gRPC takes by itself.
        own_connection: connect anew. Channels to one target otherwise share a connection, and its pause after a failure.
    """
    return grpc.aio.insecure_channel(target, options=_options(max_message_bytes, own_connection))


def open_blocking_channel(target: str, *, max_message_bytes: int | None = None) -> grpc.Channel:
    """Return a channel for a thread that may wait; otherwise as `open_channel`."""
    return grpc.insecure_channel(target, options=_options(max_message_bytes, own_connection=False))


def _options(max_message_bytes: int | None, own_connection: bool) -> list[tuple[str, int]]:
    options = list(RECONNECT_OPTIONS)
    if max_message_bytes is not None:
        options += [("grpc.max_receive_message_length", max_message_bytes), ("grpc.max_send_message_length", max_message_bytes)]
    if own_connection:
        options.append(("grpc.use_local_subchannel_pool", 1))
    return options


def service_error(code: grpc.StatusCode, message: str) -> ServiceError:
    """Return the error that a server's status stands for; Unavailable when it is none that a caller could do something about."""
    return _ERROR_OF.get(code, Unavailable)(message)
