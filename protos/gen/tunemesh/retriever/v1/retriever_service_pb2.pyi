from tunemesh.common.v1 import passage_pb2 as _passage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SearchRequest(_message.Message):
    __slots__ = ("query", "limit", "source")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    query: str
    limit: int
    source: str
    def __init__(self, query: _Optional[str] = ..., limit: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("passages", "index_version", "degraded_reason")
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    INDEX_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    passages: _containers.RepeatedCompositeFieldContainer[_passage_pb2.Passage]
    index_version: str
    degraded_reason: str
    def __init__(self, passages: _Optional[_Iterable[_Union[_passage_pb2.Passage, _Mapping]]] = ..., index_version: _Optional[str] = ..., degraded_reason: _Optional[str] = ...) -> None: ...

class GetIndexStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetIndexStatusResponse(_message.Message):
    __slots__ = ("index_version", "num_passages", "passages_by_source", "catalog_offset", "refused_files", "incomplete_files")
    class PassagesBySourceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RefusedFilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class IncompleteFilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INDEX_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_PASSAGES_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_BY_SOURCE_FIELD_NUMBER: _ClassVar[int]
    CATALOG_OFFSET_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FILES_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_FILES_FIELD_NUMBER: _ClassVar[int]
    index_version: str
    num_passages: int
    passages_by_source: _containers.ScalarMap[str, int]
    catalog_offset: int
    refused_files: _containers.ScalarMap[str, str]
    incomplete_files: _containers.ScalarMap[str, str]
    def __init__(self, index_version: _Optional[str] = ..., num_passages: _Optional[int] = ..., passages_by_source: _Optional[_Mapping[str, int]] = ..., catalog_offset: _Optional[int] = ..., refused_files: _Optional[_Mapping[str, str]] = ..., incomplete_files: _Optional[_Mapping[str, str]] = ...) -> None: ...
