from tunemesh.common.v1 import chat_pb2 as _chat_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExampleKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXAMPLE_KIND_UNSPECIFIED: _ClassVar[ExampleKind]
    EXAMPLE_KIND_DEMONSTRATION: _ClassVar[ExampleKind]
    EXAMPLE_KIND_JUDGED: _ClassVar[ExampleKind]
EXAMPLE_KIND_UNSPECIFIED: ExampleKind
EXAMPLE_KIND_DEMONSTRATION: ExampleKind
EXAMPLE_KIND_JUDGED: ExampleKind

class LlmExample(_message.Message):
    __slots__ = ("example_id", "task", "kind", "question", "messages", "answer", "score", "comment", "request_id", "feedback_id", "prompt_version", "model_version", "passage_ids", "created_at_ms", "user_id")
    EXAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    example_id: str
    task: str
    kind: ExampleKind
    question: str
    messages: _containers.RepeatedCompositeFieldContainer[_chat_pb2.ChatMessage]
    answer: str
    score: float
    comment: str
    request_id: str
    feedback_id: str
    prompt_version: str
    model_version: str
    passage_ids: _containers.RepeatedScalarFieldContainer[str]
    created_at_ms: int
    user_id: str
    def __init__(self, example_id: _Optional[str] = ..., task: _Optional[str] = ..., kind: _Optional[_Union[ExampleKind, str]] = ..., question: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_chat_pb2.ChatMessage, _Mapping]]] = ..., answer: _Optional[str] = ..., score: _Optional[float] = ..., comment: _Optional[str] = ..., request_id: _Optional[str] = ..., feedback_id: _Optional[str] = ..., prompt_version: _Optional[str] = ..., model_version: _Optional[str] = ..., passage_ids: _Optional[_Iterable[str]] = ..., created_at_ms: _Optional[int] = ..., user_id: _Optional[str] = ...) -> None: ...
