from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tunemesh.samples.v1.sample_pb2 import SampleGroup, SampleRecord, TaskLabel, Tick

from services.common.ranker import exposure_block
from services.trainer.dedup import DedupWindow
from services.trainer.group_columns import columns_of
from services.trainer.merge import GroupRecord, Segment, TickRecord
from services.trainer.samples import Learnable, UnusableSample, parse_record, without_repeats
from tests.trainer_fakes.sample_logs import SPEC, block, group


def parse(record: SampleRecord) -> GroupRecord | TickRecord:
    return parse_record(SPEC, 7, record.SerializeToString(), [("traceparent", b"00-x")])


def test_a_sound_group_keeps_its_trace() -> None:
    record = parse(SampleRecord(group=group(1, "u", ["1", "2"], positive=False)))
    assert isinstance(record, GroupRecord)
    assert (record.offset, record.group.traceparent) == (7, "00-x")
    assert len(record.group.group) == 2


def test_a_tick_carries_number_and_watermark() -> None:
    assert parse(SampleRecord(tick=Tick(tick=5, watermark_ms=2_500, exposures_position=9))) == TickRecord(7, 5, 2_500, 9)
    tick = Tick(tick=5, watermark_ms=2_500, exposures_position=9, exposures_log=2**64 - 1)
    assert parse(SampleRecord(tick=tick)) == TickRecord(7, 5, 2_500, 9, 2**64 - 1)


def poisoned_block(sound: SampleGroup) -> bytes:
    features = exposure_block.decode(sound.features_block, SPEC)
    items_NF = features.items_NF.copy()
    items_NF[0, 0] = np.nan
    return exposure_block.encode(replace(features, items_NF=items_NF), SPEC.schema_hash)


@pytest.mark.parametrize(
    ("spoil", "reason", "detail"),
    [
        (lambda g: setattr(g, "schema_hash", "other"), "schema_mismatch", "feature spec 'other'"),
        (lambda g: setattr(g, "features_block", b"\x09junk"), "malformed", "exposure block"),
        (lambda g: setattr(g, "features_block", block("u", 3)), "malformed", "2 samples, but 3 rows"),
        (lambda g: setattr(g, "features_block", poisoned_block(g)), "malformed", "item features hold NaN"),
        (lambda g: g.samples.clear(), "malformed", "0 samples, but 2 rows"),
        (lambda g: setattr(g.samples[1], "item_id", ""), "malformed", r"item_id\[1\]: it is empty"),
        (lambda g: setattr(g.samples[1], "keep_rate", 0.0), "malformed", "keep_rate 0.0 of item '2'"),
        (lambda g: setattr(g.samples[0], "keep_rate", float("nan")), "malformed", "keep_rate nan"),
        (lambda g: g.samples[0].labels.append(TaskLabel(task="buy", value=1)), "malformed", "task 'buy'"),
        (lambda g: g.samples[0].labels.append(TaskLabel(task="like", value=float("inf"))), "malformed", "label inf for task 'like'"),
        (lambda g: g.samples[0].labels.append(TaskLabel(task="like", value=4.0)), "malformed", "label 4.0"),
        (lambda g: g.samples[0].replaces.append(TaskLabel(task="like", value=4.0)), "malformed", "label 4.0"),
        (lambda g: g.samples[0].labels.append(TaskLabel(task="interact", value=1.0)), "malformed", "two labels for one task"),
    ],
)
def test_what_the_learner_must_not_see_is_refused_with_a_reason(spoil: Callable[[SampleGroup], object], reason: str, detail: str) -> None:
    bad = group(1, "u", ["1", "2"], positive=False)
    spoil(bad)
    with pytest.raises(UnusableSample, match=detail) as refused:
        parse(SampleRecord(group=bad))
    assert refused.value.reason == reason


@pytest.mark.parametrize("value", [None, b"\xff\xff\xff", b""])
def test_bytes_that_are_no_sample_record_are_malformed(value: bytes | None) -> None:
    with pytest.raises(UnusableSample) as refused:
        parse_record(SPEC, 7, value, [])
    assert refused.value.reason == "malformed"


SEGMENT: Segment[Learnable] = Segment(partition=0, exposures_done=10, groups=())


def test_of_a_group_that_was_partly_learned_the_rest_keeps_its_own_features() -> None:
    window = DedupWindow(100, 100)
    whole = columns_of(SPEC, group(1, "u", ["1", "2", "3"], positive=False, seed=4))
    window.add(np.array([whole.sample_ids[1]], np.uint64))
    rest = without_repeats(whole, SEGMENT, window)
    assert rest is not None
    assert rest.item_ids == ["1", "3"]
    assert (rest.features.items_NF == whole.features.items_NF[[0, 2]]).all()
    assert len(rest) == len(rest.revisions) == len(rest.accepted_at_ms) == len(rest.meanings) == 2
    assert without_repeats(whole, SEGMENT, window) is None


def test_a_new_group_is_passed_on_as_it_is() -> None:
    whole = columns_of(SPEC, group(1, "u", ["1", "2"], positive=False))
    assert without_repeats(whole, SEGMENT, DedupWindow(100, 100)) is whole


@pytest.mark.parametrize(("exposure_offset", "is_learned"), [(9, False), (10, True)])
def test_a_group_whose_exposure_was_done_before_is_a_repetition(exposure_offset: int, is_learned: bool) -> None:
    message = group(1, "u", ["1", "2"], positive=False)
    message.exposure_offset = exposure_offset
    whole = columns_of(SPEC, message)
    assert (without_repeats(whole, SEGMENT, DedupWindow(100, 100)) is not None) == is_learned


@pytest.mark.parametrize("exposure_offset", [9, 10])
def test_what_an_operator_puts_back_is_learned_however_old_it_is_and_once(exposure_offset: int) -> None:
    """Its exposure may long be done: without the header it would be taken for a joiner's repetition, and never be learned."""
    message, window = group(1, "u", ["1", "2"], positive=False), DedupWindow(100, 100)
    message.exposure_offset = exposure_offset
    value = SampleRecord(group=message).SerializeToString()
    learned = []
    for _ in range(2):
        record = parse_record(SPEC, 7, value, [("tunemesh-redriven", b"samples.v1/0/3/schema_mismatch")])
        assert isinstance(record, GroupRecord) and record.group.group.is_redriven
        learned.append(without_repeats(record.group.group, SEGMENT, window) is not None)
    assert learned == [True, False]
