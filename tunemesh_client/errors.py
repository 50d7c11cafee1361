"""What may go wrong, as exceptions that say whether a retry helps. All of them are a `TunemeshError`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import grpc

from tunemesh_client.status_details import retry_delay_s

_DETAILS_KEY = "grpc-status-details-bin"
# gRPC refuses a message above the size limit of either side with RESOURCE_EXHAUSTED and this text. No retry makes it smaller.
_TOO_LARGE = "message larger than max"


class TunemeshError(Exception):
    """Root of the client's errors. Each class says whether a retry helps.

    Attributes:
        retry_helps: whether the same call may succeed later, with the same idempotency_key or feedback_id.
        details: what the server, or Kafka's library, said.
        status: name of the gRPC status, e.g. "UNAVAILABLE"; of an event producer, the name of the library's error.
        request: which call it was and where it went, e.g. "Recommend at 127.0.0.1:50051".
        attempts: how often the call was tried.
        idempotency_key: of a recommendation: what to pass along when you try again. Empty otherwise.
        retry_after_s: the server asks not to be called earlier than this many seconds from now; None when it does not say.
    """

    retry_helps: ClassVar[bool] = False

    def __init__(
        self,
        details: str,
        status: str = "",
        request: str = "",
        attempts: int = 1,
        idempotency_key: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        """All arguments are kept in `args`, so that the error can be pickled."""
        super().__init__(details, status, request, attempts, idempotency_key, retry_after_s)
        self.details, self.status, self.request = details, status, request
        self.attempts, self.idempotency_key, self.retry_after_s = attempts, idempotency_key, retry_after_s

    def __str__(self) -> str:
        """Say which call failed, how, and after how many attempts."""
        attempts = f" (after {self.attempts} attempts)" if self.attempts > 1 else ""
        return ": ".join(part for part in (self.request, self.status, self.details) if part) + attempts


class InvalidRequest(TunemeshError):
    """The request itself is wrong: `details` names the field, or a message is too large. A retry does not help."""


class NotFound(TunemeshError):
    """What the request names does not exist, e.g. the adapter that it pins. A retry does not help."""


class AccessDenied(TunemeshError):
    """The caller is not known, or may not do this. A retry does not help."""


class Conflict(TunemeshError):
    """The state is not the one that the request expects. A retry does not help before the state has been read again."""


class Cancelled(TunemeshError):
    """The call was cancelled, e.g. because the client was closed meanwhile. A retry does not help."""


class Internal(TunemeshError):
    """The server failed in a way that only a defect explains; its log has the traceback. A retry does not help."""


class Unavailable(TunemeshError):
    """The server, or something that the answer needs, cannot be reached now. A retry helps, later."""

    retry_helps = True


class Incomplete(Unavailable):
    """An answer's stream ended with OK, but without its last message. A retry helps, from the start."""


class DeadlineExceeded(TunemeshError):
    """No answer came in time; the request may have been carried out all the same. A retry helps, with the same key and more time."""

    retry_helps = True


class Overloaded(TunemeshError):
    """A bound was reached: too many calls are under way. A retry helps, later and slower."""

    retry_helps = True


_CLASS_OF: dict[grpc.StatusCode, type[TunemeshError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
}


def error_of(error: grpc.RpcError, request: str, attempts: int, idempotency_key: str = "") -> TunemeshError:
    """Return the exception that stands for a failed call. Statuses that only a defect explains become `Internal`."""
    code, details = error.code(), error.details() or ""
    kind = InvalidRequest if _TOO_LARGE in details else _CLASS_OF.get(code, Internal)
    return kind(details, code.name, request, attempts, idempotency_key, _retry_after_s(error))


def _retry_after_s(error: grpc.RpcError) -> float | None:
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment] # the stubs' Metadata
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return retry_delay_s(value)
    return None
