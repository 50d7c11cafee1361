"""What the updater's core decides about deltas and bases."""

from __future__ import annotations

import pytest
from tunemesh.events.v1.delta_pb2 import BasePointer, DeltaHeader

from services.common.ranker.tables.control_block import Applied
from services.recommender.updater.core import Follower, Identity, Outcome


def pointer(base_id: str, epoch: int = 1, seq: int = -1, **fields) -> BasePointer:
    values = {"model": "ranker", "schema_hash": "s", "lineage_id": "l", "delta_offsets": [0]}
    return BasePointer(base_id=base_id, epoch=epoch, seq=seq, **values | fields)


def header(seq: int, epoch: int = 1, **fields) -> DeltaHeader:
    values = {"model": "ranker", "schema_hash": "s", "lineage_id": "l", "prev_seq": seq - 1, "base_id": "b1"}
    return DeltaHeader(epoch=epoch, seq=seq, **values | fields)


def applied(seq: int, epoch: int = 1, base_id: str = "b1") -> Applied:
    return Applied(epoch=epoch, seq=seq, watermark_ms=0, base_id=base_id)


@pytest.fixture
def follower() -> Follower:
    """Follows lineage l, epoch 1, with base b1 and deltas up to 5 applied."""
    subject = Follower(Identity(model="ranker", schema_hash="s"))
    subject.begin("l", None)
    assert subject.announce(pointer("b1")) == ""
    subject.loaded(subject.base_to_load(), applied(-1))
    subject.advanced(applied(5))
    return subject


def test_the_next_delta_is_applied_and_a_repeated_one_is_skipped(follower):
    assert follower.judge(header(6)).outcome is Outcome.APPLY
    assert follower.judge(header(5)).outcome is Outcome.SKIP
    assert follower.judge(header(0)).outcome is Outcome.SKIP


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"schema_hash": "other"}, "its schema is 'other', this replica has 's'"),
        ({"lineage_id": "other"}, "its lineage is 'other'"),
        ({"model": "other"}, "its model is 'other'"),
        ({"shard": 1}, "its shard is 1"),
        ({"epoch": 0}, "epoch 0 was superseded by 1"),
    ],
)
def test_a_foreign_or_superseded_delta_is_refused(follower, fields, reason):
    decision = follower.judge(header(6, **fields))
    assert decision.outcome is Outcome.REFUSE
    assert reason in decision.reason


def test_a_gap_stops_following_until_a_base_brings_what_is_missing(follower):
    decision = follower.judge(header(8))
    assert decision.outcome is Outcome.BLOCK
    assert "follows seq 7, but only 5 is applied" in decision.reason
    follower.block(decision.reason, decision.need)
    assert not follower.is_following
    follower.announce(pointer("too-old", seq=6))
    assert follower.base_to_load() is None
    follower.announce(pointer("b2", seq=7))
    assert follower.base_to_load().base_id == "b2"
    follower.loaded(follower.base_to_load(), applied(7, base_id="b2"))
    assert follower.judge(header(8)).outcome is Outcome.APPLY


def test_a_base_from_which_following_got_stuck_is_not_loaded_again(follower):
    follower.block("an offset is out of range")
    assert follower.base_to_load() is None
    follower.announce(pointer("b1", seq=9))
    assert follower.base_to_load() is None


def test_a_newer_epoch_continues_the_base_that_is_applied(follower):
    assert follower.judge(header(0, epoch=2)).outcome is Outcome.APPLY
    follower.advanced(applied(0, epoch=2))
    assert follower.judge(header(6)).outcome is Outcome.REFUSE


def test_a_newer_epoch_may_continue_a_base_that_was_passed_by_deltas(follower):
    follower.announce(pointer("b2", seq=4))
    assert follower.judge(header(0, epoch=2, base_id="b2")).outcome is Outcome.APPLY


def test_a_newer_epoch_on_another_base_waits_for_that_base(follower):
    decision = follower.judge(header(0, epoch=2, base_id="b2"))
    assert decision.outcome is Outcome.BLOCK
    follower.block(decision.reason, decision.need)
    assert follower.base_to_load() is None
    follower.announce(pointer("b2", epoch=2))
    assert follower.base_to_load().base_id == "b2"


def test_a_base_of_the_older_epoch_is_taken_when_the_newer_one_names_it(follower):
    follower.announce(pointer("b2", seq=9))
    decision = follower.judge(header(0, epoch=2, base_id="b2"))
    follower.block(decision.reason, decision.need)
    assert follower.base_to_load().base_id == "b2"


def test_a_newer_epoch_whose_beginning_is_missing_stops_following(follower):
    decision = follower.judge(header(3, epoch=2))
    assert decision.outcome is Outcome.BLOCK
    assert decision.need.is_met_by(pointer("b2", epoch=2, seq=2))
    assert not decision.need.is_met_by(pointer("b2", epoch=2, seq=1))


def test_a_base_of_a_newer_epoch_is_loaded_and_one_of_the_same_epoch_is_not(follower):
    follower.announce(pointer("b2", seq=9))
    assert follower.base_to_load() is None
    follower.announce(pointer("b3", epoch=2))
    assert follower.base_to_load().base_id == "b3"


def test_of_several_bases_the_last_of_the_highest_epoch_counts():
    subject = Follower(Identity(model="ranker", schema_hash="s"))
    subject.begin("l", None)
    for base_id, epoch in [("a", 2), ("b", 3), ("c", 3), ("zombie", 2)]:
        subject.announce(pointer(base_id, epoch=epoch))
    assert subject.base_to_load().base_id == "c"
    subject.discard("c", "damaged")
    assert subject.base_to_load().base_id == "b"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"schema_hash": "other"}, "has schema 'other', this replica has 's'"),
        ({"lineage_id": "other"}, "is of lineage 'other', this broker's is 'l'"),
        ({"model": "other"}, "is of model 'other'"),
        ({"delta_offsets": []}, "does not say where the deltas of shard 0 continue"),
    ],
)
def test_a_foreign_base_is_refused(follower, fields, reason):
    assert reason in follower.announce(pointer("b9", epoch=9, **fields))
    assert follower.base_to_load() is None


def test_a_new_history_forgets_the_bases_of_the_old_one(follower):
    follower.announce(pointer("b3", epoch=2))
    follower.begin("l2", None)
    assert follower.base_to_load() is None
    assert not follower.is_following


def test_no_delta_is_judged_while_none_is_wanted():
    with pytest.raises(RuntimeError, match="no delta is wanted"):
        Follower(Identity(model="ranker", schema_hash="s")).judge(header(0))
