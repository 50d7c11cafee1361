from tunemesh.common.v1 import chat_pb2 as _chat_pb2
from tunemesh.common.v1 import passage_pb2 as _passage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AssembleRequest(_message.Message):
    __slots__ = ("template", "label", "question", "passages", "history", "max_prompt_tokens")
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    template: str
    label: str
    question: str
    passages: _containers.RepeatedCompositeFieldContainer[_passage_pb2.Passage]
    history: _containers.RepeatedCompositeFieldContainer[_chat_pb2.ChatMessage]
    max_prompt_tokens: int
    def __init__(self, template: _Optional[str] = ..., label: _Optional[str] = ..., question: _Optional[str] = ..., passages: _Optional[_Iterable[_Union[_passage_pb2.Passage, _Mapping]]] = ..., history: _Optional[_Iterable[_Union[_chat_pb2.ChatMessage, _Mapping]]] = ..., max_prompt_tokens: _Optional[int] = ...) -> None: ...

class AssembleResponse(_message.Message):
    __slots__ = ("messages", "prompt_version", "used_passage_ids", "prompt_tokens", "degraded_reason")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    USED_PASSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[_chat_pb2.ChatMessage]
    prompt_version: str
    used_passage_ids: _containers.RepeatedScalarFieldContainer[str]
    prompt_tokens: int
    degraded_reason: str
    def __init__(self, messages: _Optional[_Iterable[_Union[_chat_pb2.ChatMessage, _Mapping]]] = ..., prompt_version: _Optional[str] = ..., used_passage_ids: _Optional[_Iterable[str]] = ..., prompt_tokens: _Optional[int] = ..., degraded_reason: _Optional[str] = ...) -> None: ...

class Template(_message.Message):
    __slots__ = ("name", "version", "messages", "max_prompt_tokens", "passage_format", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    messages: _containers.RepeatedCompositeFieldContainer[_chat_pb2.ChatMessage]
    max_prompt_tokens: int
    passage_format: str
    description: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., messages: _Optional[_Iterable[_Union[_chat_pb2.ChatMessage, _Mapping]]] = ..., max_prompt_tokens: _Optional[int] = ..., passage_format: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class PutTemplateRequest(_message.Message):
    __slots__ = ("template",)
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    template: Template
    def __init__(self, template: _Optional[_Union[Template, _Mapping]] = ...) -> None: ...

class PutTemplateResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class GetTemplateRequest(_message.Message):
    __slots__ = ("name", "version", "label")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    label: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class GetTemplateResponse(_message.Message):
    __slots__ = ("template", "labels")
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    template: Template
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, template: _Optional[_Union[Template, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class ListTemplatesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTemplatesResponse(_message.Message):
    __slots__ = ("templates",)
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    templates: _containers.RepeatedCompositeFieldContainer[TemplateSummary]
    def __init__(self, templates: _Optional[_Iterable[_Union[TemplateSummary, _Mapping]]] = ...) -> None: ...

class TemplateSummary(_message.Message):
    __slots__ = ("name", "newest_version", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEWEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    newest_version: int
    labels: _containers.ScalarMap[str, int]
    def __init__(self, name: _Optional[str] = ..., newest_version: _Optional[int] = ..., labels: _Optional[_Mapping[str, int]] = ...) -> None: ...
