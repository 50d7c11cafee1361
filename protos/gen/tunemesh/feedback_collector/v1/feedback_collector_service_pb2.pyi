from tunemesh.events.v1 import feedback_pb2 as _feedback_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitFeedbackRequest(_message.Message):
    __slots__ = ("feedback",)
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    feedback: _containers.RepeatedCompositeFieldContainer[_feedback_pb2.Feedback]
    def __init__(self, feedback: _Optional[_Iterable[_Union[_feedback_pb2.Feedback, _Mapping]]] = ...) -> None: ...

class SubmitFeedbackResponse(_message.Message):
    __slots__ = ("receipts",)
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    receipts: _containers.RepeatedCompositeFieldContainer[FeedbackReceipt]
    def __init__(self, receipts: _Optional[_Iterable[_Union[FeedbackReceipt, _Mapping]]] = ...) -> None: ...

class FeedbackReceipt(_message.Message):
    __slots__ = ("feedback_id", "accepted_at_ms", "duplicate")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    accepted_at_ms: int
    duplicate: bool
    def __init__(self, feedback_id: _Optional[str] = ..., accepted_at_ms: _Optional[int] = ..., duplicate: _Optional[bool] = ...) -> None: ...
