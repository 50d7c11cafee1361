from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("model", "schema_hash", "lineage_id", "base_id", "epoch", "seq", "source_offsets", "watermark_ms", "samples_trained", "duplicates_skipped", "paused", "prequential_auc", "prequential_log_loss", "table_rows", "last_checkpoint", "state_hash", "publishing_refused", "passed_over")
    class PrequentialAucEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class PrequentialLogLossEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class TableRowsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_HASH_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_TRAINED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    PREQUENTIAL_AUC_FIELD_NUMBER: _ClassVar[int]
    PREQUENTIAL_LOG_LOSS_FIELD_NUMBER: _ClassVar[int]
    TABLE_ROWS_FIELD_NUMBER: _ClassVar[int]
    LAST_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    PUBLISHING_REFUSED_FIELD_NUMBER: _ClassVar[int]
    PASSED_OVER_FIELD_NUMBER: _ClassVar[int]
    model: str
    schema_hash: str
    lineage_id: str
    base_id: str
    epoch: int
    seq: int
    source_offsets: _containers.RepeatedScalarFieldContainer[int]
    watermark_ms: int
    samples_trained: int
    duplicates_skipped: int
    paused: bool
    prequential_auc: _containers.ScalarMap[str, float]
    prequential_log_loss: _containers.ScalarMap[str, float]
    table_rows: _containers.ScalarMap[str, int]
    last_checkpoint: str
    state_hash: str
    publishing_refused: str
    passed_over: _containers.RepeatedCompositeFieldContainer[PassedOver]
    def __init__(self, model: _Optional[str] = ..., schema_hash: _Optional[str] = ..., lineage_id: _Optional[str] = ..., base_id: _Optional[str] = ..., epoch: _Optional[int] = ..., seq: _Optional[int] = ..., source_offsets: _Optional[_Iterable[int]] = ..., watermark_ms: _Optional[int] = ..., samples_trained: _Optional[int] = ..., duplicates_skipped: _Optional[int] = ..., paused: _Optional[bool] = ..., prequential_auc: _Optional[_Mapping[str, float]] = ..., prequential_log_loss: _Optional[_Mapping[str, float]] = ..., table_rows: _Optional[_Mapping[str, int]] = ..., last_checkpoint: _Optional[str] = ..., state_hash: _Optional[str] = ..., publishing_refused: _Optional[str] = ..., passed_over: _Optional[_Iterable[_Union[PassedOver, _Mapping]]] = ...) -> None: ...

class PassedOver(_message.Message):
    __slots__ = ("partition", "first_offset", "end_offset")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    FIRST_OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    partition: int
    first_offset: int
    end_offset: int
    def __init__(self, partition: _Optional[int] = ..., first_offset: _Optional[int] = ..., end_offset: _Optional[int] = ...) -> None: ...

class PauseLearningRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PauseLearningResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeLearningRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeLearningResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WriteCheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WriteCheckpointResponse(_message.Message):
    __slots__ = ("checkpoint", "state_hash", "source_offsets")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    state_hash: str
    source_offsets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, checkpoint: _Optional[str] = ..., state_hash: _Optional[str] = ..., source_offsets: _Optional[_Iterable[int]] = ...) -> None: ...

class PublishBaseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PublishBaseResponse(_message.Message):
    __slots__ = ("base_id", "uri")
    BASE_ID_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    base_id: str
    uri: str
    def __init__(self, base_id: _Optional[str] = ..., uri: _Optional[str] = ...) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("alias", "target", "expected_version", "actor", "allow_unjudged", "validate_only")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ALLOW_UNJUDGED_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    alias: str
    target: str
    expected_version: int
    actor: str
    allow_unjudged: bool
    validate_only: bool
    def __init__(self, alias: _Optional[str] = ..., target: _Optional[str] = ..., expected_version: _Optional[int] = ..., actor: _Optional[str] = ..., allow_unjudged: _Optional[bool] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class SetAliasResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class GetAliasRequest(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: str
    def __init__(self, alias: _Optional[str] = ...) -> None: ...

class GetAliasResponse(_message.Message):
    __slots__ = ("target", "version", "previous_target")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    version: int
    previous_target: str
    def __init__(self, target: _Optional[str] = ..., version: _Optional[int] = ..., previous_target: _Optional[str] = ...) -> None: ...

class RestoreCheckpointRequest(_message.Message):
    __slots__ = ("not_after_ms", "skip_later_samples", "actor", "not_after_version")
    NOT_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    SKIP_LATER_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    not_after_ms: int
    skip_later_samples: bool
    actor: str
    not_after_version: str
    def __init__(self, not_after_ms: _Optional[int] = ..., skip_later_samples: _Optional[bool] = ..., actor: _Optional[str] = ..., not_after_version: _Optional[str] = ...) -> None: ...

class RestoreCheckpointResponse(_message.Message):
    __slots__ = ("checkpoint", "checkpoint_created_at_ms", "epoch", "source_offsets", "skipped", "checkpoint_version")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_VERSION_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    checkpoint_created_at_ms: int
    epoch: int
    source_offsets: _containers.RepeatedScalarFieldContainer[int]
    skipped: _containers.RepeatedScalarFieldContainer[int]
    checkpoint_version: str
    def __init__(self, checkpoint: _Optional[str] = ..., checkpoint_created_at_ms: _Optional[int] = ..., epoch: _Optional[int] = ..., source_offsets: _Optional[_Iterable[int]] = ..., skipped: _Optional[_Iterable[int]] = ..., checkpoint_version: _Optional[str] = ...) -> None: ...
