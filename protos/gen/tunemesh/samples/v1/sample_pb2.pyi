from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SampleRecord(_message.Message):
    __slots__ = ("group", "tick")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    group: SampleGroup
    tick: Tick
    def __init__(self, group: _Optional[_Union[SampleGroup, _Mapping]] = ..., tick: _Optional[_Union[Tick, _Mapping]] = ...) -> None: ...

class SampleGroup(_message.Message):
    __slots__ = ("request_id", "user_id", "exposed_at_ms", "model_version", "variant", "schema_hash", "features_block", "samples", "exposure_offset")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_HASH_FIELD_NUMBER: _ClassVar[int]
    FEATURES_BLOCK_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    EXPOSURE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    user_id: str
    exposed_at_ms: int
    model_version: str
    variant: str
    schema_hash: str
    features_block: bytes
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    exposure_offset: int
    def __init__(self, request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., exposed_at_ms: _Optional[int] = ..., model_version: _Optional[str] = ..., variant: _Optional[str] = ..., schema_hash: _Optional[str] = ..., features_block: _Optional[bytes] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., exposure_offset: _Optional[int] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("sample_id", "item_id", "revision", "labels", "keep_rate", "retracts_negative", "feedback_id", "accepted_at_ms", "propensity", "replaces", "position")
    SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    KEEP_RATE_FIELD_NUMBER: _ClassVar[int]
    RETRACTS_NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    sample_id: int
    item_id: str
    revision: int
    labels: _containers.RepeatedCompositeFieldContainer[TaskLabel]
    keep_rate: float
    retracts_negative: bool
    feedback_id: str
    accepted_at_ms: int
    propensity: float
    replaces: _containers.RepeatedCompositeFieldContainer[TaskLabel]
    position: int
    def __init__(self, sample_id: _Optional[int] = ..., item_id: _Optional[str] = ..., revision: _Optional[int] = ..., labels: _Optional[_Iterable[_Union[TaskLabel, _Mapping]]] = ..., keep_rate: _Optional[float] = ..., retracts_negative: _Optional[bool] = ..., feedback_id: _Optional[str] = ..., accepted_at_ms: _Optional[int] = ..., propensity: _Optional[float] = ..., replaces: _Optional[_Iterable[_Union[TaskLabel, _Mapping]]] = ..., position: _Optional[int] = ...) -> None: ...

class TaskLabel(_message.Message):
    __slots__ = ("task", "value")
    TASK_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    task: str
    value: float
    def __init__(self, task: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Tick(_message.Message):
    __slots__ = ("tick", "watermark_ms", "feedback_position", "exposures_position", "exposures_log")
    TICK_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPOSURES_POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPOSURES_LOG_FIELD_NUMBER: _ClassVar[int]
    tick: int
    watermark_ms: int
    feedback_position: int
    exposures_position: int
    exposures_log: int
    def __init__(self, tick: _Optional[int] = ..., watermark_ms: _Optional[int] = ..., feedback_position: _Optional[int] = ..., exposures_position: _Optional[int] = ..., exposures_log: _Optional[int] = ...) -> None: ...
