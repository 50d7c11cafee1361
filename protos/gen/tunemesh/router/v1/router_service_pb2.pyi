from tunemesh.common.v1 import chat_pb2 as _chat_pb2
from tunemesh.common.v1 import passage_pb2 as _passage_pb2
from tunemesh.common.v1 import recommendation_pb2 as _recommendation_pb2
from tunemesh.events.v1 import attributes_pb2 as _attributes_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecommendRequest(_message.Message):
    __slots__ = ("user_id", "candidates", "limit", "idempotency_key", "context", "profile")
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
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    candidates: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    idempotency_key: str
    context: _containers.MessageMap[str, _attributes_pb2.Value]
    profile: _containers.MessageMap[str, _attributes_pb2.Value]
    def __init__(self, user_id: _Optional[str] = ..., candidates: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ..., idempotency_key: _Optional[str] = ..., context: _Optional[_Mapping[str, _attributes_pb2.Value]] = ..., profile: _Optional[_Mapping[str, _attributes_pb2.Value]] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("request_id", "experiment", "variant", "model_version", "degraded_reason", "task_names", "items")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    TASK_NAMES_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    experiment: str
    variant: str
    model_version: str
    degraded_reason: str
    task_names: _containers.RepeatedScalarFieldContainer[str]
    items: _containers.RepeatedCompositeFieldContainer[_recommendation_pb2.RankedItem]
    def __init__(self, request_id: _Optional[str] = ..., experiment: _Optional[str] = ..., variant: _Optional[str] = ..., model_version: _Optional[str] = ..., degraded_reason: _Optional[str] = ..., task_names: _Optional[_Iterable[str]] = ..., items: _Optional[_Iterable[_Union[_recommendation_pb2.RankedItem, _Mapping]]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("user_id", "task", "question", "history", "context", "retrieve", "retrieval_source", "sampling", "adapter")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    RETRIEVE_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_SOURCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    task: str
    question: str
    history: _containers.RepeatedCompositeFieldContainer[_chat_pb2.ChatMessage]
    context: _containers.RepeatedCompositeFieldContainer[_passage_pb2.Passage]
    retrieve: bool
    retrieval_source: str
    sampling: _chat_pb2.Sampling
    adapter: str
    def __init__(self, user_id: _Optional[str] = ..., task: _Optional[str] = ..., question: _Optional[str] = ..., history: _Optional[_Iterable[_Union[_chat_pb2.ChatMessage, _Mapping]]] = ..., context: _Optional[_Iterable[_Union[_passage_pb2.Passage, _Mapping]]] = ..., retrieve: _Optional[bool] = ..., retrieval_source: _Optional[str] = ..., sampling: _Optional[_Union[_chat_pb2.Sampling, _Mapping]] = ..., adapter: _Optional[str] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("header", "text", "finish_reason", "usage")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    header: GenerateHeader
    text: str
    finish_reason: str
    usage: _chat_pb2.TokenUsage
    def __init__(self, header: _Optional[_Union[GenerateHeader, _Mapping]] = ..., text: _Optional[str] = ..., finish_reason: _Optional[str] = ..., usage: _Optional[_Union[_chat_pb2.TokenUsage, _Mapping]] = ...) -> None: ...

class GenerateHeader(_message.Message):
    __slots__ = ("request_id", "experiment", "variant", "model_version", "prompt_version", "degraded_reason", "passages")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    experiment: str
    variant: str
    model_version: str
    prompt_version: str
    degraded_reason: str
    passages: _containers.RepeatedCompositeFieldContainer[_passage_pb2.Passage]
    def __init__(self, request_id: _Optional[str] = ..., experiment: _Optional[str] = ..., variant: _Optional[str] = ..., model_version: _Optional[str] = ..., prompt_version: _Optional[str] = ..., degraded_reason: _Optional[str] = ..., passages: _Optional[_Iterable[_Union[_passage_pb2.Passage, _Mapping]]] = ...) -> None: ...
