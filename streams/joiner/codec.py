"""Between the wire and the joiner's values: parses and checks what is read, builds what is written. No I/O, no clock."""

from __future__ import annotations

from functools import lru_cache

from tunemesh.samples.v1 import sample_pb2

from services.common.events.envelope import MalformedRecord, parse_value
from services.common.events.exposure import Exposure
from services.common.events.feedback import Feedback
from services.common.events.wire import exposure as wire_exposure
from services.common.events.wire import feedback as wire_feedback
from services.common.platform.errors import CorruptArtifact
from services.common.ranker import exposure_block
from services.common.ranker.labels import Label
from streams.joiner.model import Cut, Resume, SampleGroup
from streams.partitioned.records import Record


def read_exposure(record: Record, now_ms: int, *, schema_hash: str) -> Exposure:
    """Return the exposure in a record of exposures.v1.

    Args:
        record: as read.
        now_ms: wall clock.
        schema_hash: of this process; a block of that schema is checked against the items, a foreign one is left to the join.
    Raises:
        MalformedRecord: it cannot be parsed, or a field breaks the contract.
    """
    exposure = wire_exposure.read_exposure(record.value, record.headers, now_ms, with_scores=False)
    if exposure.features_block and exposure.schema_hash == schema_hash:
        _check_block(exposure.features_block, schema_hash, len(exposure.item_ids))
    return exposure


def read_feedback(record: Record, now_ms: int) -> Feedback:
    """Return the feedback in a record of feedback.v1.

    Raises:
        MalformedRecord: it cannot be parsed, or a field breaks the contract.
    """
    return wire_feedback.read_feedback(record.value, record.headers, now_ms)


def write_group(group: SampleGroup) -> bytes:
    """Return the SampleRecord of a group; its block has one row per sample."""
    exposure = group.exposure
    record = sample_pb2.SampleRecord()
    message = record.group
    message.request_id = exposure.request_id
    message.user_id = exposure.user_id
    message.exposed_at_ms = exposure.exposed_at_ms
    message.model_version = exposure.model_version
    message.variant = exposure.variant
    message.schema_hash = exposure.schema_hash
    message.exposure_offset = group.exposure_offset
    message.features_block = exposure_block.select(exposure.features_block, [sample.row for sample in group.samples])
    for sample in group.samples:
        written = message.samples.add()
        written.CopyFrom(_template(sample.labels, sample.keep_rate))
        written.sample_id = sample.sample_id
        written.item_id = exposure.item_ids[sample.row]
        written.position = sample.row + 1
        if exposure.propensities:
            written.propensity = exposure.propensities[sample.row]
        if sample.feedback is not None:
            written.revision = sample.revision
            written.retracts_negative = sample.retracts_negative
            written.feedback_id = sample.feedback.feedback_id
            written.accepted_at_ms = sample.feedback.accepted_at_ms
            for label in sample.replaces:
                written.replaces.add(task=label.task, value=label.value)
    return record.SerializeToString()


@lru_cache(256)
def _template(labels: tuple[Label, ...], keep_rate: float) -> sample_pb2.Sample:
    """Return the part that samples with the same labels share: copying it takes a quarter of the time that building it takes."""
    written = [sample_pb2.TaskLabel(task=label.task, value=label.value) for label in labels]
    return sample_pb2.Sample(labels=written, keep_rate=keep_rate, propensity=1.0)


def write_tick(cut: Cut, exposures_log: int = 0) -> bytes:
    """Return the SampleRecord of a tick; `exposures_log` names the incarnation of exposures.v1."""
    tick = sample_pb2.Tick(
        tick=cut.tick,
        watermark_ms=cut.watermark_ms,
        feedback_position=cut.feedback_position,
        exposures_position=cut.exposures_committable,
        exposures_log=exposures_log,
    )
    return sample_pb2.SampleRecord(tick=tick).SerializeToString()


def read_tick(value: bytes | None) -> sample_pb2.Tick | None:
    """Return the tick in a record of samples.v1, or None when it is something else."""
    try:
        message = parse_value(value, None, sample_pb2.SampleRecord)
    except MalformedRecord:
        return None  # whoever reads samples sets it aside; here only ticks are looked for
    return message.tick if message.WhichOneof("record") == "tick" else None


def resume_from(tick: sample_pb2.Tick | None, exposures_end: int, exposures_log: int = 0, *, feedback_end: int | None = None) -> Resume:
    """Return what a partition takes up from, given its last tick, if there is one.

    Args:
        tick: the last one.
        exposures_end: where the partition's exposures end: before the offset that the tick names, exposures.v1 began anew, and the offset
            says nothing about it.
        exposures_log: incarnation of exposures.v1; 0: not known. Of another one than the tick's it began anew.
        feedback_end: where the partition's feedback ends, to the same purpose; None: not known.
    """
    if tick is None:
        return Resume()
    is_other = tick.exposures_log != exposures_log and 0 not in (tick.exposures_log, exposures_log)
    began_anew = is_other or exposures_end < tick.exposures_position
    is_same_feedback = feedback_end is None or feedback_end >= tick.feedback_position
    return Resume(tick.feedback_position if is_same_feedback else 0, tick.watermark_ms, 0 if began_anew else tick.exposures_position)


def _check_block(block: bytes, schema_hash: str, num_items: int) -> None:
    try:
        found, rows = exposure_block.schema_hash(block), exposure_block.num_items(block)
    except CorruptArtifact as error:
        raise MalformedRecord(f"features_block: {error}") from error
    if found != schema_hash:
        raise MalformedRecord(f"features_block is of schema {found}, the exposure says {schema_hash}")
    if rows != num_items:
        raise MalformedRecord(f"features_block has {rows} rows for {num_items} items")
    if rows and block[0] == exposure_block.VERSION_WITH_SEQUENCES:
        try:
            # As the samples will be: the head says nothing of what is in the sequences, and to fail later would end the worker.
            exposure_block.select(block, [0])
        except (CorruptArtifact, ValueError) as error:
            raise MalformedRecord(f"features_block: {error}") from error
