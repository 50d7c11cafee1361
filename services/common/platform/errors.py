"""The errors that cross a service's edge. Imports the standard library only, since every core may import it.

A core subclasses these; `services.common.platform.grpc_server` maps them to gRPC status codes.
"""

from __future__ import annotations

MAX_MESSAGE_CHARS = 1_000
"""Of an error that says what somebody sent. gRPC gives up a call whose details are larger than 8 KiB."""


def shortened(text: str, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Return the text, without its middle when it is longer than `max_chars`: what callers and producers send may be of any length."""
    if len(text) <= max_chars:
        return text
    head, tail = max_chars * 3 // 4, max_chars // 4
    return f"{text[:head]}… ({len(text) - head - tail} characters left out) …{text[-tail:]}"


class ServiceError(Exception):
    """Root of the errors that a caller is told about, with their message."""


class InvalidInput(ServiceError):
    """The request itself is wrong. Retrying does not help. Maps to INVALID_ARGUMENT."""


class NotFound(ServiceError):
    """What was asked for does not exist. Retrying does not help. Maps to NOT_FOUND."""


class Conflict(ServiceError):
    """The state is not the one that the caller expected. Read again, then retry. Maps to FAILED_PRECONDITION."""


class Unavailable(ServiceError):
    """Something that the answer needs cannot be reached. Retrying later helps. Maps to UNAVAILABLE."""


class DeadlineExceeded(Unavailable):
    """The request's time is over: the caller's, or the service's own limit. More time may help. Maps to DEADLINE_EXCEEDED."""


class Overloaded(ServiceError):
    """A bound was reached. Retrying later, and slower, helps. Maps to RESOURCE_EXHAUSTED."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        """`retry_after_s`: when to come again, seconds from now; callers get it as google.rpc.RetryInfo. None: nobody knows."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConfigurationError(Exception):
    """The process cannot start with these settings, files or ports. The message is one line: what, where, what to do."""


class CorruptArtifact(Exception):
    """A base, checkpoint, delta or table is damaged or foreign. Refused; the message says why. Retrying does not help."""
