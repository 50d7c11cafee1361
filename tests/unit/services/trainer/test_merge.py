import itertools
import random

import pytest

from services.trainer.merge import (
    Batch,
    GroupRecord,
    PartitionPosition,
    Position,
    Segment,
    TickMerge,
    TickRecord,
    UnusableRecord,
    start_position,
)

Record = GroupRecord[str] | TickRecord | UnusableRecord


def log_of(partition: int, segments: list[int], first_tick: int = 10) -> list[Record]:
    """One partition's log: segments[i] groups, then tick first_tick + i."""
    records: list[Record] = []
    for index, num_groups in enumerate(segments):
        for group in range(num_groups):
            records.append(GroupRecord(len(records), f"p{partition}s{index}g{group}"))
        records.append(TickRecord(len(records), first_tick + index, 1_000 * (first_tick + index)))
    return records


def drain(merge: TickMerge[str]) -> list[list[str]]:
    return [list(batch.groups) for batch in iter(merge.next_batch, None)]


def feed(merge: TickMerge[str], logs: list[list[Record]], order: list[int]) -> list[list[str]]:
    """Push one record at a time from the partitions in `order`, draining after each push."""
    cursors = [iter([record for record in log if record.offset >= merge.position.offsets[p]]) for p, log in enumerate(logs)]
    batches: list[list[str]] = []
    for partition in [*order, *itertools.chain(*[[p] * 1_000 for p in range(len(logs))])]:
        record = next(cursors[partition], None)
        if record is not None:
            merge.push(partition, record)
            batches += drain(merge)
    return batches


def test_segments_alternate_by_tick_and_a_batch_ends_when_it_is_full_or_all_are_past_the_tick() -> None:
    merge = TickMerge[str](start_position([0, 0]), batch_groups=2)
    batches = feed(merge, [log_of(0, [3, 1]), log_of(1, [1, 2])], [])
    assert batches == [["p0s0g0", "p0s0g1"], ["p0s0g2", "p1s0g0"], ["p0s1g0", "p1s1g0"], ["p1s1g1"]]


@pytest.mark.parametrize("num_partitions", [1, 2, 7, 100])
def test_a_ticks_groups_make_as_many_batches_however_many_partitions_they_are_spread_over(num_partitions: int) -> None:
    source = random.Random(num_partitions)
    spread = [[source.randrange(num_partitions) for _ in range(count)] for count in (120, 0, 7, 33, 64)]
    logs = [log_of(partition, [users.count(partition) for users in spread]) for partition in range(num_partitions)]
    batches = feed(TickMerge[str](start_position([0] * num_partitions), batch_groups=16), logs, [])
    assert [len(batch) for batch in batches] == [*[16] * 7, 8, 7, 16, 16, 1, *[16] * 4]
    assert sorted(itertools.chain(*batches)) == sorted(
        f"p{p}s{s}g{g}" for p in range(num_partitions) for s, users in enumerate(spread) for g in range(users.count(p))
    )


def test_a_partition_that_lags_by_ticks_is_learned_up_to_the_others_first() -> None:
    merge = TickMerge[str](start_position([0, 0]), batch_groups=9)
    assert feed(merge, [log_of(0, [1, 1], first_tick=12), log_of(1, [1, 1, 1, 1])], []) == [
        ["p0s0g0", "p1s0g0"], ["p1s1g0"], ["p1s2g0"], ["p0s1g0", "p1s3g0"],
    ]  # fmt: skip


def test_what_waits_for_the_other_partitions_ticks_is_not_in_the_position_and_may_be_passed_over() -> None:
    merge = TickMerge[str](start_position([0, 0]), batch_groups=9)
    for record in log_of(0, [2]):
        merge.push(0, record)
    assert merge.next_batch() is None
    assert merge.position.offsets == [0, 0]
    with pytest.raises(ValueError, match="offset 2 pushed, but 3 is the next one"):
        merge.push(0, TickRecord(2, 11, 0))
    assert merge.pass_over([3, 0]) == [Segment(0, 0, ("p0s0g0", "p0s0g1"))]
    assert merge.position.offsets == [3, 0]


def test_batches_do_not_depend_on_the_order_in_which_records_arrive() -> None:
    source = random.Random(3)
    logs = [log_of(p, [source.randrange(7) for _ in range(20)], first_tick=10 + p) for p in range(3)]
    expected = feed(TickMerge[str](start_position([0] * 3), batch_groups=3), logs, [])
    for _ in range(20):
        order = [source.randrange(3) for _ in range(150)]
        assert feed(TickMerge[str](start_position([0] * 3), batch_groups=3), logs, order) == expected


def demanded_logs(source: random.Random, num_partitions: int) -> list[list[Record]]:
    """Ticks at uneven moments, the same on all partitions but for those that one is late for; joiners of before at first; a clock that is
    put back for a while; records that cannot be used."""
    moments = [3_400_000_000 + at for at in range(4)]
    now_ms = 1_700_000_000_000
    for _ in range(30):
        now_ms += 100 * source.choice([1, 1, 2, 3, 5]) - (3_000 if source.random() < 0.03 else 0)
        moments.append(now_ms)
    logs: list[list[Record]] = [[] for _ in range(num_partitions)]
    for number, moment in enumerate(moments):
        for partition, log in enumerate(logs):
            for group in range(source.choice([0, 0, 1, 1, 2, 9])):
                log.append(GroupRecord(len(log), f"p{partition}m{number}g{group}"))
            if source.random() < 0.1:
                log.append(UnusableRecord(len(log)))
            if source.random() < 0.95:
                log.append(TickRecord(len(log), moment, moment))
    for log in logs:
        log.append(TickRecord(len(log), now_ms + 10_000, 0))
    return logs


@pytest.mark.parametrize("seed", range(40))
def test_uneven_ticks_give_the_same_batches_whatever_comes_first_and_wherever_it_begins_again(seed: int) -> None:
    source = random.Random(seed)
    num_partitions = source.choice([1, 2, 3, 5])
    logs = demanded_logs(source, num_partitions)
    start = start_position([0] * num_partitions)
    expected = feed(TickMerge[str](start, batch_groups=4), logs, [])
    groups = sum(isinstance(record, GroupRecord) for log in logs for record in log)
    assert sum(map(len, expected)) == groups, "a partition starves"
    for _ in range(5):
        order = [source.randrange(num_partitions) for _ in range(200)]
        assert feed(TickMerge[str](start, batch_groups=4), logs, order) == expected
    merge, done = TickMerge[str](start, batch_groups=4), 0
    while done < len(expected):
        # A process that reads as it likes, and ends after some batches.
        left, until = [list(log) for log in logs], done + source.randrange(1, 12)
        for partition, log in enumerate(left):
            log[:] = [record for record in log if record.offset >= merge.position.offsets[partition]]
        while any(left) and done < until:
            partition = source.choice([p for p, log in enumerate(left) if log])
            merge.push(partition, left[partition].pop(0))
            while done < until and (batch := merge.next_batch()) is not None:
                assert list(batch.groups) == expected[done]
                done += 1
        merge = TickMerge[str](merge.position, batch_groups=4)


def test_a_restart_at_any_batch_repeats_the_rest() -> None:
    source = random.Random(5)
    logs = [log_of(p, [source.randrange(9) for _ in range(15)]) for p in range(2)]
    merge = TickMerge[str](start_position([0, 0]), batch_groups=4)
    for partition, log in enumerate(logs):
        for record in log:
            merge.push(partition, record)
    batches, cuts = [], [merge.position]
    for batch in iter(merge.next_batch, None):
        batches.append(list(batch.groups))
        cuts.append(merge.position)
    assert len(batches) > 20
    for done, cut in enumerate(cuts):
        assert feed(TickMerge[str](cut, batch_groups=4), logs, []) == batches[done:]


def test_an_incomplete_batch_waits_for_its_tick() -> None:
    merge = TickMerge[str](start_position([0]), batch_groups=2)
    merge.push(0, GroupRecord(0, "a"))
    assert merge.next_batch() is None
    assert merge.position.offsets == [0]
    merge.push(0, TickRecord(1, 7, 70))
    assert merge.next_batch() == Batch((Segment(0, 0, ("a",)),))
    assert merge.position == Position((PartitionPosition(2, 7, 70),))


def test_ticks_without_groups_move_the_watermark() -> None:
    merge = TickMerge[str](start_position([0, 0]), batch_groups=2)
    merge.push(0, TickRecord(0, 7, 70))
    assert merge.next_batch() is None
    assert merge.position.watermark_ms == 0
    merge.push(1, TickRecord(0, 7, 60))
    assert merge.next_batch() is None
    assert merge.position.watermark_ms == 60
    assert merge.position.offsets == [1, 1]


def test_a_partition_without_ticks_holds_the_others_back() -> None:
    merge = TickMerge[str](start_position([0, 0]), batch_groups=1)
    for record in log_of(1, [1, 1]):
        merge.push(1, record)
    assert drain(merge) == []
    merge.push(0, TickRecord(0, 10, 0))
    assert drain(merge) == [["p1s0g0"]]


def test_unusable_records_count_as_nothing_but_move_the_offset() -> None:
    merge = TickMerge[str](start_position([0]), batch_groups=2)
    for record in (UnusableRecord(0), GroupRecord(1, "a"), UnusableRecord(2), GroupRecord(3, "b"), UnusableRecord(4)):
        merge.push(0, record)
    assert drain(merge) == [["a", "b"]]
    assert merge.position.offsets == [4]


def test_offsets_may_skip_but_not_go_back() -> None:
    merge = TickMerge[str](start_position([5]), batch_groups=1)
    merge.push(0, GroupRecord(9, "a"))
    with pytest.raises(ValueError, match="offset 9 pushed, but 10 is the next one"):
        merge.push(0, GroupRecord(9, "a"))
    merge.next_batch()
    with pytest.raises(ValueError, match="offset 3 pushed, but 10 is the next one"):
        merge.push(0, GroupRecord(3, "a"))


def test_a_clock_that_steps_back_moves_the_order_on_by_one_and_the_watermark_not_back() -> None:
    merge = TickMerge[str](start_position([0]), batch_groups=1)
    merge.push(0, TickRecord(0, 9, 90))
    merge.push(0, TickRecord(1, 4, 40))
    assert merge.next_batch() is None
    assert merge.position == Position((PartitionPosition(2, 10, 90),))


def test_a_batch_says_which_exposures_and_feedback_were_done_before_it_and_not_by_the_tick_that_ends_it() -> None:
    merge = TickMerge[str](Position((PartitionPosition(0, 3, 30, exposures_done=4),)), batch_groups=2)
    groups = (
        GroupRecord(0, "a"),
        GroupRecord(1, "b"),
        GroupRecord(2, "c"),
        TickRecord(3, 4, 40, 7),
        GroupRecord(4, "d"),
        TickRecord(5, 5, 50, 9),
    )
    for record in groups:
        merge.push(0, record)
    batches = [batch.segments for batch in iter(merge.next_batch, None)]
    assert batches == [(Segment(0, 4, ("a", "b"), 30),), (Segment(0, 4, ("c",), 30),), (Segment(0, 7, ("d",), 40),)]
    assert merge.position == Position((PartitionPosition(6, 5, 50, 9),))


@pytest.mark.parametrize(
    ("known_log", "tick", "log", "expected"),
    [
        (0, 10, 0, (20, 0)),  # joiners of before: a lower position is one that came late
        (0, 10, 7, (20, 7)),
        (7, 10, 0, (20, 7)),
        (7, 10, 7, (20, 7)),  # the successor of a joiner whose last tick landed behind the successor's first
        (7, 9, 8, (20, 7)),  # a tick of the old log that comes late
        (7, 10, 8, (2, 8)),  # exposures.v1 began anew
    ],
)
def test_exposures_begin_anew_by_a_new_tick_of_another_log_and_by_nothing_else(known_log: int, tick: int, log: int, expected) -> None:
    merge = TickMerge[str](Position((PartitionPosition(0, 9, 90, 20, known_log),)), batch_groups=1)
    merge.push(0, TickRecord(0, tick, 90, 2, log))
    assert merge.next_batch() is None
    place = merge.position.partitions[0]
    assert (place.exposures_done, place.exposures_log) == expected


@pytest.mark.parametrize("seed", range(50))
def test_unusable_records_change_nothing_but_the_offset_and_a_run_of_them_waits_as_one(seed: int) -> None:
    source = random.Random(seed)
    plain, mixed = TickMerge[int](start_position([0, 0]), batch_groups=3), TickMerge[int](start_position([0, 0]), batch_groups=3)
    got: list[list[list[int]]] = [[], []]
    offsets = [0, 0]
    for number in range(200):
        partition = source.randrange(2)
        for _ in range(source.choice([0, 0, 1, 30])):
            mixed.push(partition, UnusableRecord(offsets[partition]))
            offsets[partition] += 1
        record = TickRecord(offsets[partition], number, number) if source.random() < 0.2 else GroupRecord(offsets[partition], number)
        offsets[partition] += 1
        for merge in (plain, mixed):
            merge.push(partition, record)
            assert mixed.buffered(partition) <= 2 * plain.buffered(partition) + 1
        for merge, batches in zip((plain, mixed), got, strict=True):
            batches += [batch.groups for batch in iter(merge.next_batch, None)]
    assert got[0] == got[1]
    assert [place.last_tick for place in plain.position.partitions] == [place.last_tick for place in mixed.position.partitions]


def test_what_is_passed_over_ends_within_a_run_of_unusable_records() -> None:
    merge = TickMerge[str](start_position([0]), batch_groups=1)
    for record in (GroupRecord(0, "a"), *(UnusableRecord(offset) for offset in range(1, 9)), GroupRecord(9, "b")):
        merge.push(0, record)
    assert merge.pass_over([5]) == [Segment(0, 0, ("a",))]
    assert merge.position.offsets == [5]
    assert merge.pass_over([10]) == [Segment(0, 0, ("b",))]
    assert merge.position.offsets == [10]


def test_what_is_passed_over_comes_segment_by_segment_up_to_the_ends() -> None:
    merge = TickMerge[str](start_position([0, 0]), batch_groups=1)
    for record in (GroupRecord(0, "a"), GroupRecord(1, "b"), TickRecord(2, 7, 70, 5), GroupRecord(3, "c"), GroupRecord(4, "d")):
        merge.push(0, record)
    merge.push(1, GroupRecord(0, "e"))
    assert merge.pass_over([4, 1]) == [Segment(0, 0, ("a", "b")), Segment(0, 5, ("c",), 70), Segment(1, 0, ("e",))]
    assert merge.position.offsets == [4, 1]
    assert (merge.buffered(0), merge.buffered(1)) == (1, 0)


def ticking(segments: list[list[str]], numbers: list[int]) -> list[Record]:
    """One partition's log: the groups of each segment, then its tick of that number."""
    records: list[Record] = []
    for groups, number in zip(segments, numbers, strict=True):
        records += [GroupRecord(len(records) + at, group) for at, group in enumerate(groups)]
        records.append(TickRecord(len(records), number, 0))
    return records


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([3_400_000_000, 3_400_000_001], [1_700_000_000_000, 1_700_000_001_000, 1_700_000_002_000]),  # joiners of before, and of now
        ([1_700_000_000_000, 1_700_000_000_500], [3_400_000_001, 3_400_000_002, 3_400_000_003]),  # and back again
        ([3_400_000_000, 3_400_000_001], [1_700_000_001, 1_700_000_002, 1_700_000_003]),  # of before, with twice the interval
        ([1_700_000_000_000, 1_700_000_000_500], [1_699_996_400_000, 1_699_996_400_500, 1_699_996_401_000]),  # a clock an hour back
    ],
)
def test_numbers_that_begin_anew_starve_no_partition(before: list[int], after: list[int]) -> None:
    logs = [ticking([[f"p{p}s{s}"] for s in range(5)], [*before, *after]) for p in range(3)]
    merge = TickMerge[str](start_position([0, 0, 0]), batch_groups=9)
    assert feed(merge, logs, [0] * 20) == [[f"p{p}s{s}" for p in range(3)] for s in range(5)]
    # What a partition with more to come would hold back for ever: it is the lowest at every tick.
    merge = TickMerge[str](start_position([0, 0, 0]), batch_groups=9)
    for partition, log in enumerate(logs):
        for record in log[: -2 if partition == 0 else None]:
            merge.push(partition, record)
    assert drain(merge) == [[f"p{p}s{s}" for p in range(3)] for s in range(4)]
