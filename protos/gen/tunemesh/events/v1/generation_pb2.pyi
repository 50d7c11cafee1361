from tunemesh.common.v1 import chat_pb2 as _chat_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Generation(_message.Message):
    __slots__ = ("request_id", "user_id", "task", "question", "messages", "answer", "finish_reason", "experiment", "variant", "model_version", "prompt_version", "passage_ids", "degraded_reason", "usage", "sampling", "started_at_ms", "first_token_at_ms", "finished_at_ms", "context_given")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_AT_MS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_GIVEN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    user_id: str
    task: str
    question: str
    messages: _containers.RepeatedCompositeFieldContainer[_chat_pb2.ChatMessage]
    answer: str
    finish_reason: str
    experiment: str
    variant: str
    model_version: str
    prompt_version: str
    passage_ids: _containers.RepeatedScalarFieldContainer[str]
    degraded_reason: str
    usage: _chat_pb2.TokenUsage
    sampling: _chat_pb2.Sampling
    started_at_ms: int
    first_token_at_ms: int
    finished_at_ms: int
    context_given: bool
    def __init__(self, request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., task: _Optional[str] = ..., question: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_chat_pb2.ChatMessage, _Mapping]]] = ..., answer: _Optional[str] = ..., finish_reason: _Optional[str] = ..., experiment: _Optional[str] = ..., variant: _Optional[str] = ..., model_version: _Optional[str] = ..., prompt_version: _Optional[str] = ..., passage_ids: _Optional[_Iterable[str]] = ..., degraded_reason: _Optional[str] = ..., usage: _Optional[_Union[_chat_pb2.TokenUsage, _Mapping]] = ..., sampling: _Optional[_Union[_chat_pb2.Sampling, _Mapping]] = ..., started_at_ms: _Optional[int] = ..., first_token_at_ms: _Optional[int] = ..., finished_at_ms: _Optional[int] = ..., context_given: _Optional[bool] = ...) -> None: ...
