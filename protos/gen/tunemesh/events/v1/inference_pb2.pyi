from tunemesh.common.v1 import chat_pb2 as _chat_pb2
from tunemesh.common.v1 import passage_pb2 as _passage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InferenceRequest(_message.Message):
    __slots__ = ("inference_id", "user_id", "task", "question", "history", "context", "retrieve", "retrieval_source", "sampling", "expires_at_ms")
    INFERENCE_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    RETRIEVE_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_SOURCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    inference_id: str
    user_id: str
    task: str
    question: str
    history: _containers.RepeatedCompositeFieldContainer[_chat_pb2.ChatMessage]
    context: _containers.RepeatedCompositeFieldContainer[_passage_pb2.Passage]
    retrieve: bool
    retrieval_source: str
    sampling: _chat_pb2.Sampling
    expires_at_ms: int
    def __init__(self, inference_id: _Optional[str] = ..., user_id: _Optional[str] = ..., task: _Optional[str] = ..., question: _Optional[str] = ..., history: _Optional[_Iterable[_Union[_chat_pb2.ChatMessage, _Mapping]]] = ..., context: _Optional[_Iterable[_Union[_passage_pb2.Passage, _Mapping]]] = ..., retrieve: _Optional[bool] = ..., retrieval_source: _Optional[str] = ..., sampling: _Optional[_Union[_chat_pb2.Sampling, _Mapping]] = ..., expires_at_ms: _Optional[int] = ...) -> None: ...

class InferenceResponse(_message.Message):
    __slots__ = ("inference_id", "request_id", "answer", "finish_reason", "model_version", "prompt_version", "degraded_reason", "passage_ids", "usage", "finished_at_ms")
    INFERENCE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    inference_id: str
    request_id: str
    answer: str
    finish_reason: str
    model_version: str
    prompt_version: str
    degraded_reason: str
    passage_ids: _containers.RepeatedScalarFieldContainer[str]
    usage: _chat_pb2.TokenUsage
    finished_at_ms: int
    def __init__(self, inference_id: _Optional[str] = ..., request_id: _Optional[str] = ..., answer: _Optional[str] = ..., finish_reason: _Optional[str] = ..., model_version: _Optional[str] = ..., prompt_version: _Optional[str] = ..., degraded_reason: _Optional[str] = ..., passage_ids: _Optional[_Iterable[str]] = ..., usage: _Optional[_Union[_chat_pb2.TokenUsage, _Mapping]] = ..., finished_at_ms: _Optional[int] = ...) -> None: ...
