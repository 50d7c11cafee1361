from tunemesh.common.v1 import recommendation_pb2 as _recommendation_pb2
from tunemesh.events.v1 import attributes_pb2 as _attributes_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecommendRequest(_message.Message):
    __slots__ = ("user_id", "candidates", "limit", "packed", "context", "profile")
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
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    candidates: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    packed: bool
    context: _containers.MessageMap[str, _attributes_pb2.Value]
    profile: _containers.MessageMap[str, _attributes_pb2.Value]
    def __init__(self, user_id: _Optional[str] = ..., candidates: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ..., packed: _Optional[bool] = ..., context: _Optional[_Mapping[str, _attributes_pb2.Value]] = ..., profile: _Optional[_Mapping[str, _attributes_pb2.Value]] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("items", "task_names", "model_version", "seq_min", "seq_max", "degraded_reason", "features_block", "schema_hash", "logged", "packed")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TASK_NAMES_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEQ_MIN_FIELD_NUMBER: _ClassVar[int]
    SEQ_MAX_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    FEATURES_BLOCK_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_HASH_FIELD_NUMBER: _ClassVar[int]
    LOGGED_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[_recommendation_pb2.RankedItem]
    task_names: _containers.RepeatedScalarFieldContainer[str]
    model_version: str
    seq_min: int
    seq_max: int
    degraded_reason: str
    features_block: bytes
    schema_hash: str
    logged: LoggedItems
    packed: PackedItems
    def __init__(self, items: _Optional[_Iterable[_Union[_recommendation_pb2.RankedItem, _Mapping]]] = ..., task_names: _Optional[_Iterable[str]] = ..., model_version: _Optional[str] = ..., seq_min: _Optional[int] = ..., seq_max: _Optional[int] = ..., degraded_reason: _Optional[str] = ..., features_block: _Optional[bytes] = ..., schema_hash: _Optional[str] = ..., logged: _Optional[_Union[LoggedItems, _Mapping]] = ..., packed: _Optional[_Union[PackedItems, _Mapping]] = ...) -> None: ...

class PackedItems(_message.Message):
    __slots__ = ("num_items", "shown", "exposed")
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_FIELD_NUMBER: _ClassVar[int]
    num_items: int
    shown: bytes
    exposed: bytes
    def __init__(self, num_items: _Optional[int] = ..., shown: _Optional[bytes] = ..., exposed: _Optional[bytes] = ...) -> None: ...

class LoggedItems(_message.Message):
    __slots__ = ("item_ids", "scores", "reasons")
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    scores: _containers.RepeatedScalarFieldContainer[float]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, item_ids: _Optional[_Iterable[str]] = ..., scores: _Optional[_Iterable[float]] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class RecommendManyRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[MergedRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[MergedRequest, _Mapping]]] = ...) -> None: ...

class MergedRequest(_message.Message):
    __slots__ = ("request", "timeout_ms", "traceparent")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    request: RecommendRequest
    timeout_ms: int
    traceparent: str
    def __init__(self, request: _Optional[_Union[RecommendRequest, _Mapping]] = ..., timeout_ms: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class RecommendManyResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[MergedAnswer]
    def __init__(self, answers: _Optional[_Iterable[_Union[MergedAnswer, _Mapping]]] = ...) -> None: ...

class MergedAnswer(_message.Message):
    __slots__ = ("response", "code", "message")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    response: bytes
    code: int
    message: str
    def __init__(self, response: _Optional[bytes] = ..., code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...
