from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ControlRecord(_message.Message):
    __slots__ = ("subject", "version", "lineage", "epoch_claim", "alias", "changed_at_ms", "actor")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_CLAIM_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    subject: str
    version: int
    lineage: Lineage
    epoch_claim: EpochClaim
    alias: Alias
    changed_at_ms: int
    actor: str
    def __init__(self, subject: _Optional[str] = ..., version: _Optional[int] = ..., lineage: _Optional[_Union[Lineage, _Mapping]] = ..., epoch_claim: _Optional[_Union[EpochClaim, _Mapping]] = ..., alias: _Optional[_Union[Alias, _Mapping]] = ..., changed_at_ms: _Optional[int] = ..., actor: _Optional[str] = ...) -> None: ...

class Lineage(_message.Message):
    __slots__ = ("lineage_id",)
    LINEAGE_ID_FIELD_NUMBER: _ClassVar[int]
    lineage_id: str
    def __init__(self, lineage_id: _Optional[str] = ...) -> None: ...

class EpochClaim(_message.Message):
    __slots__ = ("model", "epoch", "continues_from", "lineage_id", "source_offsets", "skipped")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONTINUES_FROM_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    model: str
    epoch: int
    continues_from: str
    lineage_id: str
    source_offsets: _containers.RepeatedScalarFieldContainer[int]
    skipped: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., epoch: _Optional[int] = ..., continues_from: _Optional[str] = ..., lineage_id: _Optional[str] = ..., source_offsets: _Optional[_Iterable[int]] = ..., skipped: _Optional[_Iterable[int]] = ...) -> None: ...

class Alias(_message.Message):
    __slots__ = ("target", "previous_target")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    previous_target: str
    def __init__(self, target: _Optional[str] = ..., previous_target: _Optional[str] = ...) -> None: ...
