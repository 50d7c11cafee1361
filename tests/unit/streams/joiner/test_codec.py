from dataclasses import replace

import numpy as np
import pytest
from tunemesh.events.v1 import exposure_pb2, feedback_pb2
from tunemesh.samples.v1 import sample_pb2

from services.common.events.envelope import MalformedRecord
from services.common.ranker import exposure_block
from services.common.ranker.declared.row_keys import KeyedRows, RowKeys
from services.common.ranker.features import Features
from services.common.ranker.labels import Label
from streams.joiner import codec
from streams.joiner.model import Cut, Resume, Sample, SampleGroup
from streams.partitioned.records import Record
from tests.unit.streams.joiner.bench import SPEC, T0

ITEMS = ["a", "b", "c"]


def block(num_items: int = 3) -> bytes:
    width = len(SPEC.item_columns)
    rows = np.arange(num_items * width).reshape(num_items, width).astype(np.float16)
    nothing = np.zeros(0, np.float16)
    features = Features(7, np.zeros(0, np.int64), nothing, np.zeros(len(SPEC.user_columns), np.float16), rows)
    return exposure_block.encode(features, SPEC.schema_hash)


def an_exposure(**changes) -> exposure_pb2.Exposure:
    fields = {
        "request_id": "r1", "user_id": "u1", "exposed_at_ms": T0, "item_ids": ITEMS, "features_block": block(),
        "schema_hash": SPEC.schema_hash, "propensities": [0.5, 0.25, 1.0],
        "model_version": "3.14", "variant": "blue", "idempotency_key": "k",
    }  # fmt: skip
    return exposure_pb2.Exposure(**(fields | changes))


def a_feedback(**changes) -> feedback_pb2.Feedback:
    fields = {
        "feedback_id": "f1", "request_id": "r1", "user_id": "u1", "item_id": "b", "kind": "rating", "value": 4.0, "accepted_at_ms": T0 + 5,
    }  # fmt: skip
    return feedback_pb2.Feedback(**(fields | changes))


def record(message, *headers) -> Record:
    return Record("t", 0, 0, b"u1", message.SerializeToString(), headers)


def test_the_keys_of_declared_features_go_on_with_their_items() -> None:
    features = exposure_block.decode(block(), SPEC)
    items = RowKeys(np.array([[1, 0], [2, 1], [0, 1]]), np.array([11, 21, 22, 23, 31]))
    keyed = replace(features, keys=KeyedRows(RowKeys(np.array([[2]]), np.array([1, 2])), items))
    shown = exposure_block.encode(keyed, SPEC.schema_hash)
    exposure = codec.read_exposure(record(an_exposure(features_block=shown)), T0, schema_hash=SPEC.schema_hash)
    samples = tuple(Sample(9 + row, row, 0, (Label("interact", 0.0),), 0.5, False, None) for row in (2, 1))
    written = sample_pb2.SampleRecord.FromString(
        codec.write_group(SampleGroup(exposure=exposure, exposure_offset=4, samples=samples, traceparent=""))
    )
    assert written.group.features_block == exposure_block.encode(keyed.only([2, 1]), SPEC.schema_hash)


def test_an_exposure_is_read_whole() -> None:
    read = codec.read_exposure(record(an_exposure(), ("traceparent", b"00-a-b-01")), T0, schema_hash=SPEC.schema_hash)
    assert (read.request_id, read.user_id, read.exposed_at_ms, read.item_ids) == ("r1", "u1", T0, ("a", "b", "c"))
    assert (read.features_block, read.schema_hash, read.propensities) == (block(), SPEC.schema_hash, (0.5, 0.25, 1.0))
    assert (read.model_version, read.variant, read.idempotency_key, read.traceparent) == ("3.14", "blue", "k", "00-a-b-01")


def test_an_exposure_without_features_or_with_foreign_ones_is_read_all_the_same() -> None:
    bare, foreign = record(an_exposure(features_block=b"", schema_hash="")), record(an_exposure(features_block=b"?", schema_hash="other"))
    assert codec.read_exposure(bare, T0, schema_hash=SPEC.schema_hash).features_block == b""
    assert codec.read_exposure(foreign, T0, schema_hash=SPEC.schema_hash).schema_hash == "other"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"user_id": ""}, "user_id: it is empty"),
        ({"features_block": block(2)}, "2 rows for 3 items"),
        ({"features_block": block()[:-1]}, "features_block"),
    ],
)
def test_an_exposure_that_breaks_the_contract_says_how(changes, said) -> None:
    with pytest.raises(MalformedRecord, match=said):
        codec.read_exposure(record(an_exposure(**changes)), T0, schema_hash=SPEC.schema_hash)


def test_a_pending_exposure_does_not_keep_what_the_join_does_not_need() -> None:
    read = codec.read_exposure(record(an_exposure(scores=[0.1] * 3, reasons=["popular"] * 3)), T0, schema_hash=SPEC.schema_hash)
    assert (read.scores, read.reasons) == ((), ())


def test_a_group_is_written_with_one_feature_row_per_sample() -> None:
    exposure = codec.read_exposure(record(an_exposure()), T0, schema_hash=SPEC.schema_hash)
    feedback = codec.read_feedback(record(a_feedback()), T0)
    negative = Sample(11, 2, 0, (Label("interact", 0.0),), 0.5, False, None)
    positive = Sample(2**64 - 1, 1, 3, (Label("interact", 1.0), Label("like", 1.0)), 1.0, True, feedback, (Label("interact", 0.5),))
    group = sample_pb2.SampleRecord.FromString(codec.write_group(SampleGroup(exposure, 41, (negative, positive), ""))).group
    assert (group.request_id, group.user_id, group.exposed_at_ms, group.model_version, group.variant) == ("r1", "u1", T0, "3.14", "blue")
    assert (group.schema_hash, group.exposure_offset) == (SPEC.schema_hash, 41)
    first, second = group.samples
    assert (first.sample_id, first.item_id, first.revision, first.feedback_id, first.accepted_at_ms) == (11, "c", 0, "", 0)
    assert (first.keep_rate, first.retracts_negative, first.propensity) == (0.5, False, 1.0)
    assert (first.position, second.position) == (3, 2), "the first item of an answer stands at 1"
    assert [(label.task, label.value) for label in first.labels] == [("interact", 0.0)]
    assert (second.sample_id, second.item_id, second.revision, second.feedback_id, second.accepted_at_ms) == (
        2**64 - 1,
        "b",
        3,
        "f1",
        T0 + 5,
    )
    assert (second.keep_rate, second.retracts_negative, second.propensity) == (1.0, True, 0.25)
    assert [(label.task, label.value) for label in second.replaces] == [("interact", 0.5)]
    rows = exposure_block.decode(block(), SPEC).items_NF
    assert (exposure_block.decode(group.features_block, SPEC).items_NF == rows[[2, 1]]).all()


def test_feedback_about_an_answer_needs_no_item() -> None:
    feedback = codec.read_feedback(record(a_feedback(kind="demonstration", item_id="", text="In 1995.")), T0)
    assert (feedback.kind, feedback.item_id) == ("demonstration", "")
    with pytest.raises(MalformedRecord, match="item_id: it is empty"):
        codec.read_feedback(record(a_feedback(kind="rating", item_id="")), T0)


def test_a_tick_is_written_and_found_again_among_other_records() -> None:
    tick = codec.read_tick(codec.write_tick(Cut(7, 123, 45, 6, 0)))
    assert tick is not None and (tick.tick, tick.watermark_ms, tick.feedback_position, tick.exposures_position) == (7, 123, 45, 6)
    assert codec.read_tick(sample_pb2.SampleRecord(group=sample_pb2.SampleGroup(request_id="r")).SerializeToString()) is None
    assert codec.read_tick(b"\xff\xff") is None
    assert codec.read_tick(None) is None


@pytest.mark.parametrize(("end", "exposures_position"), [(6, 6), (100, 6), (5, 0)])
def test_a_partition_takes_up_behind_the_exposures_that_are_done_unless_their_log_began_anew(end: int, exposures_position: int) -> None:
    tick = codec.read_tick(codec.write_tick(Cut(7, 123, 45, 6, 0)))
    assert codec.resume_from(tick, end) == Resume(45, 123, exposures_position)
    assert codec.resume_from(None, end) == Resume()


@pytest.mark.parametrize(("feedback_end", "position"), [(45, 45), (100, 45), (44, 0), (None, 45)])
def test_feedback_of_a_log_that_began_anew_is_not_taken_for_done(feedback_end, position) -> None:
    tick = codec.read_tick(codec.write_tick(Cut(7, 123, 45, 6, 0)))
    assert codec.resume_from(tick, 100, feedback_end=feedback_end) == Resume(position, 123, 6)


@pytest.mark.parametrize(("said", "present", "exposures_position"), [(7, 7, 6), (7, 8, 0), (0, 8, 6), (7, 0, 6), (2**64 - 1, 2**64 - 1, 6)])
def test_exposures_of_another_incarnation_are_read_from_what_is_committed(said: int, present: int, exposures_position: int) -> None:
    tick = codec.read_tick(codec.write_tick(Cut(7, 123, 45, 6, 0), said))
    assert codec.resume_from(tick, 100, present) == Resume(45, 123, exposures_position)
