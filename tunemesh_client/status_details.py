"""Reads google.rpc.RetryInfo out of a failed call's details, without the package that holds its generated code.

The messages are declared here in a pool of their own, so that they do not clash with googleapis-common-protos in the same process.
Sources: google/rpc/status.proto (field 3, details) and google/rpc/error_details.proto (RetryInfo, field 1, retry_delay).
"""

from __future__ import annotations

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import DecodeError, Message

_RETRY_INFO = "google.rpc.RetryInfo"


def retry_delay_s(details: bytes) -> float | None:
    """Return how many seconds the server asks to wait, or None when `details` (a serialised google.rpc.Status) does not say."""
    try:
        status = _STATUS.FromString(details)
        for detail in status.details:  # type: ignore[attr-defined] # declared below
            if detail.TypeName() == _RETRY_INFO:
                delay = _RETRY.FromString(detail.value).retry_delay  # type: ignore[attr-defined]
                delay_s = float(delay.seconds) + float(delay.nanos) / 1e9
                return max(delay_s, 0.0)
    except DecodeError:  # the wait is advice: details that cannot be read are like none
        return None
    return None


def _declare() -> tuple[type[Message], type[Message]]:
    pool = descriptor_pool.DescriptorPool()
    for dependency in (any_pb2, duration_pb2):
        pool.AddSerializedFile(dependency.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="tunemesh_client/status.proto", package="google.rpc", syntax="proto3")
    file.dependency.extend([any_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name])
    field = descriptor_pb2.FieldDescriptorProto
    for message, name, number, label, kind in (
        ("Status", "details", 3, field.LABEL_REPEATED, ".google.protobuf.Any"),
        ("RetryInfo", "retry_delay", 1, field.LABEL_OPTIONAL, ".google.protobuf.Duration"),
    ):
        declared = field(name=name, number=number, label=label, type=field.TYPE_MESSAGE, type_name=kind)
        file.message_type.add(name=message).field.append(declared)
    pool.Add(file)
    status, retry = (message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}")) for name in ("Status", "RetryInfo"))
    return status, retry


_STATUS, _RETRY = _declare()
