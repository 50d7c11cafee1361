from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RowDtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_DTYPE_UNSPECIFIED: _ClassVar[RowDtype]
    ROW_DTYPE_FP32: _ClassVar[RowDtype]
    ROW_DTYPE_BF16: _ClassVar[RowDtype]
    ROW_DTYPE_INT8_ROWWISE: _ClassVar[RowDtype]
ROW_DTYPE_UNSPECIFIED: RowDtype
ROW_DTYPE_FP32: RowDtype
ROW_DTYPE_BF16: RowDtype
ROW_DTYPE_INT8_ROWWISE: RowDtype

class Delta(_message.Message):
    __slots__ = ("header", "chunk_index", "chunk_count", "body")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_INDEX_FIELD_NUMBER: _ClassVar[int]
    CHUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    header: DeltaHeader
    chunk_index: int
    chunk_count: int
    body: bytes
    def __init__(self, header: _Optional[_Union[DeltaHeader, _Mapping]] = ..., chunk_index: _Optional[int] = ..., chunk_count: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class DeltaHeader(_message.Message):
    __slots__ = ("model", "schema_hash", "lineage_id", "epoch", "shard", "seq", "prev_seq", "base_id", "source_offsets", "watermark_ms", "dtype", "body_crc32c", "heartbeat", "created_at_ms", "gradient_norm", "samples_trained", "continues_epoch", "continues_seq")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_HASH_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PREV_SEQ_FIELD_NUMBER: _ClassVar[int]
    BASE_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BODY_CRC32C_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_TRAINED_FIELD_NUMBER: _ClassVar[int]
    CONTINUES_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONTINUES_SEQ_FIELD_NUMBER: _ClassVar[int]
    model: str
    schema_hash: str
    lineage_id: str
    epoch: int
    shard: int
    seq: int
    prev_seq: int
    base_id: str
    source_offsets: _containers.RepeatedScalarFieldContainer[int]
    watermark_ms: int
    dtype: RowDtype
    body_crc32c: int
    heartbeat: bool
    created_at_ms: int
    gradient_norm: float
    samples_trained: int
    continues_epoch: int
    continues_seq: int
    def __init__(self, model: _Optional[str] = ..., schema_hash: _Optional[str] = ..., lineage_id: _Optional[str] = ..., epoch: _Optional[int] = ..., shard: _Optional[int] = ..., seq: _Optional[int] = ..., prev_seq: _Optional[int] = ..., base_id: _Optional[str] = ..., source_offsets: _Optional[_Iterable[int]] = ..., watermark_ms: _Optional[int] = ..., dtype: _Optional[_Union[RowDtype, str]] = ..., body_crc32c: _Optional[int] = ..., heartbeat: _Optional[bool] = ..., created_at_ms: _Optional[int] = ..., gradient_norm: _Optional[float] = ..., samples_trained: _Optional[int] = ..., continues_epoch: _Optional[int] = ..., continues_seq: _Optional[int] = ...) -> None: ...

class BasePointer(_message.Message):
    __slots__ = ("model", "base_id", "uri", "schema_hash", "lineage_id", "epoch", "seq", "delta_offsets", "manifest_crc32c", "created_at_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_ID_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_HASH_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    DELTA_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_CRC32C_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    base_id: str
    uri: str
    schema_hash: str
    lineage_id: str
    epoch: int
    seq: int
    delta_offsets: _containers.RepeatedScalarFieldContainer[int]
    manifest_crc32c: int
    created_at_ms: int
    def __init__(self, model: _Optional[str] = ..., base_id: _Optional[str] = ..., uri: _Optional[str] = ..., schema_hash: _Optional[str] = ..., lineage_id: _Optional[str] = ..., epoch: _Optional[int] = ..., seq: _Optional[int] = ..., delta_offsets: _Optional[_Iterable[int]] = ..., manifest_crc32c: _Optional[int] = ..., created_at_ms: _Optional[int] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("replica_id", "model", "base_id", "epoch", "seq", "watermark_ms", "reported_at_ms", "delta_offsets", "blocked", "newest_base_id", "schema_hash")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    REPORTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    DELTA_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_FIELD_NUMBER: _ClassVar[int]
    NEWEST_BASE_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_HASH_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    model: str
    base_id: str
    epoch: int
    seq: int
    watermark_ms: int
    reported_at_ms: int
    delta_offsets: _containers.RepeatedScalarFieldContainer[int]
    blocked: str
    newest_base_id: str
    schema_hash: str
    def __init__(self, replica_id: _Optional[str] = ..., model: _Optional[str] = ..., base_id: _Optional[str] = ..., epoch: _Optional[int] = ..., seq: _Optional[int] = ..., watermark_ms: _Optional[int] = ..., reported_at_ms: _Optional[int] = ..., delta_offsets: _Optional[_Iterable[int]] = ..., blocked: _Optional[str] = ..., newest_base_id: _Optional[str] = ..., schema_hash: _Optional[str] = ...) -> None: ...
