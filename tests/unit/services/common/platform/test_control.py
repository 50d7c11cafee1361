import itertools
import random

import pytest
from tunemesh.events.v1.control_pb2 import ControlRecord, EpochClaim

from services.common.platform.control import AliasConflict, AliasNotFound, ControlState, alias_subject, epoch_subject, fold


def claim(state: ControlState, epoch: int) -> ControlRecord:
    return state.epoch_change(EpochClaim(model="ranker", epoch=epoch, continues_from="c"), now_ms=5, actor="t")


def compacted(log: list[ControlRecord], upto: int) -> list[ControlRecord]:
    """What compaction leaves of log[:upto], with the rest behind it."""
    last = {record.subject: index for index, record in enumerate(log[:upto])}
    return [record for index, record in enumerate(log) if index >= upto or last[record.subject] == index]


def test_an_empty_log_has_no_lineage_no_epoch_and_no_alias() -> None:
    state = fold([])
    assert (state.lineage_id, state.epoch("ranker"), state.epoch_claim("ranker")) == ("", 0, None)
    with pytest.raises(AliasNotFound, match="ranker/production"):
        state.alias("ranker/production")


def test_changes_count_versions_up_per_subject() -> None:
    state = ControlState()
    for epoch in (1, 2):
        assert state.apply(claim(state, epoch))
    assert state.apply(state.lineage_change("L", now_ms=1, actor="t"))
    assert state.version(epoch_subject("ranker")) == 2
    assert (state.epoch("ranker"), state.lineage_id) == (2, "L")


def test_of_two_records_with_one_version_the_first_is_believed() -> None:
    state = ControlState()
    first = state.alias_change("a", "one", 0, now_ms=1, actor="x")
    second = state.alias_change("a", "two", 0, now_ms=1, actor="y")
    assert state.apply(first)
    assert not state.apply(second)
    assert (state.alias("a").alias.target, state.version(alias_subject("a"))) == ("one", 1)


def test_compare_and_set_refuses_another_version() -> None:
    state = ControlState()
    state.apply(state.alias_change("a", "one", 0, now_ms=1, actor="x"))
    with pytest.raises(AliasConflict, match="version 1, not 0"):
        state.alias_change("a", "two", 0, now_ms=1, actor="x")
    state.apply(state.alias_change("a", "two", 1, now_ms=1, actor="x"))
    assert (state.alias("a").alias.target, state.alias("a").alias.previous_target, state.alias("a").version) == ("two", "one", 2)


def test_the_fold_of_a_compacted_log_equals_that_of_the_whole_log() -> None:
    source = random.Random(1)
    state, log = ControlState(), []
    for _ in range(200):
        alias = source.choice("abc")
        version = state.version(alias_subject(alias))
        record = state.alias_change(alias, f"target{source.random()}", version, now_ms=1, actor="x")
        assert state.apply(record)
        log.append(record)
    for upto in range(0, 201, 10):
        assert fold(compacted(log, upto)).records == state.records


def test_a_lost_race_is_healed_by_a_reassertion_in_whole_and_compacted_logs() -> None:
    state = ControlState()
    winner, loser = (state.alias_change("a", target, 0, now_ms=1, actor="x") for target in ("winner", "loser"))
    state.apply(winner)
    state.apply(loser)
    again = state.reassertion(alias_subject("a"), above=loser.version, now_ms=2, actor="loser")
    log = [winner, loser, again]
    for upto in range(len(log) + 1):
        if upto != 2:  # Compacted between the loss and its healing, the winner is gone: the loser's writer retries at once.
            assert fold(compacted(log, upto)).alias("a").alias.target == "winner", upto
    assert again.version == 2


def test_an_old_record_never_replaces_a_newer_one_in_any_order() -> None:
    state = ControlState()
    log = []
    for epoch in (1, 2, 3):
        log.append(claim(state, epoch))
        state.apply(log[-1])
    for order in itertools.permutations(log):
        assert fold(order).epoch("ranker") == 3
