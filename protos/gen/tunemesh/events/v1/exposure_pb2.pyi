from tunemesh.events.v1 import attributes_pb2 as _attributes_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Exposure(_message.Message):
    __slots__ = ("request_id", "user_id", "exposed_at_ms", "item_ids", "propensities", "features_block", "schema_hash", "experiment", "variant", "model_version", "degraded_reason", "idempotency_key", "candidates_given", "scores", "reasons", "context", "profile")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _attributes_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_attributes_pb2.Value, _Mapping]] = ...) -> None: ...
    class ProfileEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _attributes_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_attributes_pb2.Value, _Mapping]] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    PROPENSITIES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_BLOCK_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_HASH_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_GIVEN_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    user_id: str
    exposed_at_ms: int
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    propensities: _containers.RepeatedScalarFieldContainer[float]
    features_block: bytes
    schema_hash: str
    experiment: str
    variant: str
    model_version: str
    degraded_reason: str
    idempotency_key: str
    candidates_given: bool
    scores: _containers.RepeatedScalarFieldContainer[float]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    context: _containers.MessageMap[str, _attributes_pb2.Value]
    profile: _containers.MessageMap[str, _attributes_pb2.Value]
    def __init__(self, request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., exposed_at_ms: _Optional[int] = ..., item_ids: _Optional[_Iterable[str]] = ..., propensities: _Optional[_Iterable[float]] = ..., features_block: _Optional[bytes] = ..., schema_hash: _Optional[str] = ..., experiment: _Optional[str] = ..., variant: _Optional[str] = ..., model_version: _Optional[str] = ..., degraded_reason: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., candidates_given: _Optional[bool] = ..., scores: _Optional[_Iterable[float]] = ..., reasons: _Optional[_Iterable[str]] = ..., context: _Optional[_Mapping[str, _attributes_pb2.Value]] = ..., profile: _Optional[_Mapping[str, _attributes_pb2.Value]] = ...) -> None: ...
