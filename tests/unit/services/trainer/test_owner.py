from collections.abc import Callable

import pytest
from tunemesh.events.v1.control_pb2 import ControlRecord, EpochClaim

from services.common.platform.control import AliasConflict, ControlState, fold
from services.common.platform.errors import Unavailable
from services.trainer.owner import ControlOwner


class FakeControlLog:
    """One reader's view of a log shared by several; `interfere` runs once, just before the next append."""

    def __init__(self, records: list[ControlRecord | None]) -> None:
        self.records = records
        self.position = 0
        self.interfere: Callable[[], object] | None = None

    def read(self, timeout_ms: int) -> list[tuple[int, ControlRecord]]:
        new = [(offset, record) for offset, record in enumerate(self.records) if offset >= self.position and record is not None]
        self.position = len(self.records)
        return new

    def append(self, record: ControlRecord) -> int:
        interfere, self.interfere = self.interfere, None
        if interfere is not None:
            interfere()
        copy = ControlRecord()
        copy.CopyFrom(record)
        self.records.append(copy)
        return len(self.records) - 1


def owner(log: FakeControlLog, actor: str = "a") -> ControlOwner:
    return ControlOwner(log, actor=actor, now_ms=lambda: 5)


def next_epoch(state: ControlState) -> ControlRecord:
    return state.epoch_change(EpochClaim(model="ranker", epoch=state.epoch("ranker") + 1), now_ms=5, actor="x")


def set_alias(target: str, expected: int) -> Callable[[ControlState], ControlRecord]:
    return lambda state: state.alias_change("ranker/production", target, expected, now_ms=5, actor="x")


def believed(records: list[ControlRecord | None]) -> ControlState:
    return fold(record for record in records if record is not None)


def test_a_write_without_interference_is_one_record() -> None:
    log = FakeControlLog([])
    assert owner(log).write(next_epoch).epoch_claim.epoch == 1
    assert len(log.records) == 1


def test_two_claimants_end_with_different_epochs() -> None:
    records: list[ControlRecord | None] = []
    mine, other = FakeControlLog(records), FakeControlLog(records)
    theirs: list[int] = []
    mine.interfere = lambda: theirs.append(owner(other, "b").write(next_epoch).epoch_claim.epoch)
    assert owner(mine).write(next_epoch).epoch_claim.epoch == 2
    assert theirs == [1]
    assert believed(records).epoch("ranker") == 2


def test_a_lost_compare_and_set_is_a_conflict_and_leaves_the_winner_in_a_compacted_log_too() -> None:
    records: list[ControlRecord | None] = []
    mine, other = FakeControlLog(records), FakeControlLog(records)
    mine.interfere = lambda: owner(other, "b").write(set_alias("theirs", 0))
    with pytest.raises(AliasConflict):
        owner(mine).write(set_alias("mine", 0))
    assert believed(records).alias("ranker/production").alias.target == "theirs"
    assert believed(records[-1:]).alias("ranker/production") == believed(records).alias("ranker/production")


def test_a_record_of_another_subject_in_between_does_not_matter() -> None:
    records: list[ControlRecord | None] = []
    mine, other = FakeControlLog(records), FakeControlLog(records)
    mine.interfere = lambda: owner(other, "b").write(set_alias("t", 0))
    assert owner(mine).write(next_epoch).epoch_claim.epoch == 1
    assert len(records) == 2


def test_a_winner_that_compaction_hid_is_outbid() -> None:
    records: list[ControlRecord | None] = []
    mine = FakeControlLog(records)
    mine.interfere = lambda: records.append(None)
    assert owner(mine).write(next_epoch).epoch_claim.epoch == 2
    assert believed(records).epoch("ranker") == 2


def test_writing_gives_up_when_others_always_come_first() -> None:
    records: list[ControlRecord | None] = []
    log = FakeControlLog(records)

    class Busy(FakeControlLog):
        def append(self, record: ControlRecord) -> int:
            owner(log, "b").write(next_epoch)
            return super().append(record)

    with pytest.raises(Unavailable, match=r"control\.v1 changed 5 times"):
        owner(Busy(records)).write(next_epoch)
