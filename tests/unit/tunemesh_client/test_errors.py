"""What a failed call becomes."""

import pickle

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

import tunemesh_client
from tunemesh_client import errors
from tunemesh_client.errors import TunemeshError, error_of
from tunemesh_client.status_details import retry_delay_s

EXPECTED = {
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.UNKNOWN: errors.Internal,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.PERMISSION_DENIED: errors.AccessDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Conflict,
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: errors.Internal,
    grpc.StatusCode.INTERNAL: errors.Internal,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DATA_LOSS: errors.Internal,
    grpc.StatusCode.UNAUTHENTICATED: errors.AccessDenied,
}
RETRIED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}


class Failed(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str | None = "why", metadata: tuple = ()) -> None:
        self._code, self._details, self._metadata = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> tuple:
        return self._metadata


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_its_exception_which_says_whether_a_retry_helps(code) -> None:
    error = error_of(Failed(code), "Recommend at here:1", 2, "key")
    assert type(error) is EXPECTED[code]
    assert error.retry_helps is (code in RETRIED)
    assert (error.status, error.details, error.request, error.attempts, error.idempotency_key) == (
        code.name,
        "why",
        "Recommend at here:1",
        2,
        "key",
    )
    assert str(error) == f"Recommend at here:1: {code.name}: why (after 2 attempts)"


def test_the_docstring_of_every_exception_says_whether_a_retry_helps() -> None:
    kinds = [kind for kind in vars(tunemesh_client).values() if isinstance(kind, type) and issubclass(kind, TunemeshError)]
    assert len(kinds) == 11
    for kind in kinds:
        if kind is not TunemeshError:
            doc = kind.__doc__ or ""
            assert ("A retry helps" in doc, "A retry does not help" in doc) == (kind.retry_helps, not kind.retry_helps), kind


@pytest.mark.parametrize("who", ["CLIENT: Sent", "SERVER: Received"])
def test_a_message_that_is_too_large_is_no_overload(who) -> None:
    error = error_of(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{who} message larger than max (9 vs. 4)"), "Recommend", 1)
    assert type(error) is errors.InvalidRequest and not error.retry_helps


def test_missing_details_are_empty() -> None:
    assert str(error_of(Failed(grpc.StatusCode.UNAVAILABLE, None), "Recommend", 1)) == "Recommend: UNAVAILABLE"


def test_an_error_survives_pickling() -> None:
    error = errors.Overloaded("full", "RESOURCE_EXHAUSTED", "Recommend", 3, "key", 1.5)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - written one line above
    assert type(copy) is errors.Overloaded and vars(copy) == vars(error) and str(copy) == str(error)


def details(*messages) -> bytes:
    status = status_pb2.Status(code=8, message="full")
    for message in messages:
        status.details.add().Pack(message)
    return status.SerializeToString()


def retry_info(seconds: int, nanos: int = 0) -> error_details_pb2.RetryInfo:
    return error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds, nanos=nanos))


def test_the_wait_that_a_server_asks_for_is_read_from_its_status_details() -> None:
    reason = error_details_pb2.ErrorInfo(reason="quota")
    metadata = (("other", "text"), ("grpc-status-details-bin", details(reason, retry_info(2, 500_000_000))))
    assert error_of(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, metadata=metadata), "Recommend", 1).retry_after_s == 2.5
    assert error_of(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED), "Recommend", 1).retry_after_s is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (details(), None),
        (details(error_details_pb2.ErrorInfo(reason="quota")), None),
        (details(retry_info(0)), 0.0),
        (details(retry_info(-3)), 0.0),
        (b"\xff\xff\xff", None),
        (status_pb2.Status(details=[any_pb2.Any(type_url="x/google.rpc.RetryInfo", value=b"\xff")]).SerializeToString(), None),
        (b"", None),
    ],
)
def test_details_of_any_kind_are_read_or_are_like_none(written, expected) -> None:
    assert retry_delay_s(written) == expected
