from dataclasses import replace

import pytest
from tunemesh.events.v1.control_pb2 import EpochClaim

from services.common.platform.control import ControlState
from services.common.platform.errors import ConfigurationError
from services.trainer.merge import PartitionPosition, Position
from services.trainer.plan import Cut, Found, OnLineageChange, Plan, plan_start

POSITION = Position((PartitionPosition(40, 9, 90), PartitionPosition(30, 9, 80)))
CUT = Cut(name="checkpoint-3", lineage_id="L", epoch=3, base_id="base-1", position=POSITION, delta_offset=17, row_dtype=1)


def control(lineage_id: str = "", epoch: int = 0) -> ControlState:
    state = ControlState()
    if lineage_id:
        state.apply(state.lineage_change(lineage_id, now_ms=1, actor="t"))
    if epoch:
        state.apply(state.epoch_change(EpochClaim(model="ranker", epoch=epoch, continues_from="c"), now_ms=1, actor="t"))
    return state


def found(state: ControlState) -> Found:
    return Found(control=state, newest_base_id="base-1", sample_ranges=[(0, 100), (5, 100)], delta_range=(0, 50))


def plan(cut: Cut | None, broker: Found, on_lineage_change: OnLineageChange = "refuse") -> Plan:
    return plan_start(
        "ranker",
        cut,
        broker,
        new_lineage_id="NEW",
        row_dtype=1,
        on_lineage_change=on_lineage_change,
        variable="TUNEMESH_X",
        where="build/checkpoints",
    )


def test_an_empty_broker_and_no_checkpoint_begin_anew_with_a_base() -> None:
    decided = plan(None, found(control()))
    assert (decided.lineage_id, decided.lineage_is_new, decided.epoch) == ("NEW", True, 1)
    assert decided.position.offsets == [0, 5]
    assert decided.publish_base and decided.write_checkpoint


def test_a_crash_before_the_first_checkpoint_begins_anew_in_the_same_lineage() -> None:
    decided = plan(None, found(control("L")))
    assert (decided.lineage_id, decided.lineage_is_new, decided.epoch) == ("L", False, 1)


def test_a_checkpoint_of_this_lineage_is_continued_by_deltas() -> None:
    decided = plan(CUT, found(control("L", 3)))
    assert decided == Plan(
        lineage_id="L",
        lineage_is_new=False,
        epoch=4,
        position=POSITION,
        publish_base=False,
        write_checkpoint=False,
        note="continuing checkpoint-3",
    )


def test_an_epoch_that_was_claimed_without_a_checkpoint_is_not_claimed_again() -> None:
    assert plan(CUT, found(control("L", 7))).epoch == 8


@pytest.mark.parametrize("delta_range", [(18, 50), (0, 16)])
def test_deltas_that_are_gone_make_a_new_base(delta_range: tuple[int, int]) -> None:
    assert plan(CUT, replace(found(control("L", 3)), delta_range=delta_range)).publish_base


def test_a_checkpoint_that_no_base_followed_yet_makes_one() -> None:
    assert plan(replace(CUT, base_id=""), replace(found(control("L", 3)), newest_base_id="")).publish_base


def test_a_newer_base_than_the_checkpoint_knows_makes_a_new_base() -> None:
    assert plan(CUT, replace(found(control("L", 3)), newest_base_id="base-2")).publish_base


@pytest.mark.parametrize(
    ("cut", "broker", "says", "offsets"),
    [
        (CUT, found(control()), "the broker has no lineage, but checkpoint-3", [0, 5]),
        (CUT, found(control("OTHER", 1)), "the broker's lineage is OTHER, but checkpoint-3", [0, 5]),
        (None, found(control("L", 2)), "epoch 2 of ranker continued 'c', but build/checkpoints holds no checkpoint", [0, 5]),
        (CUT, replace(found(control("L", 3)), sample_ranges=[(0, 100)]), "has 1 partitions, but checkpoint-3", [0]),
        (
            CUT,
            replace(found(control("L", 3)), sample_ranges=[(0, 100), (0, 100), (7, 9)]),
            "has 3 partitions, but checkpoint-3",
            [40, 30, 7],
        ),
        (
            CUT,
            replace(found(control("L", 3)), sample_ranges=[(0, 100), (31, 100)]),
            "begins at offset 31, but checkpoint-3 continues at 30",
            [40, 31],
        ),
        (
            CUT,
            replace(found(control("L", 3)), sample_ranges=[(5, 39), (0, 100)]),
            "ends at offset 39, but checkpoint-3 continues at 40",
            [5, 30],
        ),
    ],
)
def test_what_does_not_belong_together_is_refused_with_what_to_do_and_can_be_adopted(
    cut: Cut | None, broker: Found, says: str, offsets: list[int]
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        plan(cut, broker)
    assert says in str(refused.value)
    assert "start once with TUNEMESH_X=adopt" in str(refused.value)
    assert "\n" not in str(refused.value)

    adopted = plan(cut, broker, "adopt")
    assert adopted.position.offsets == offsets
    assert adopted.publish_base and adopted.write_checkpoint
    assert adopted.epoch > max(cut.epoch if cut else 0, broker.control.epoch("ranker"))
    assert adopted.lineage_id == (broker.control.lineage_id or "NEW")


def test_adopting_moves_the_trimmed_partition_alone_and_no_tick_goes_back() -> None:
    position = Position((PartitionPosition(900, 9, 90), PartitionPosition(50_000_000, 9, 80)))
    broker = replace(found(control("L", 3)), sample_ranges=[(1000, 2000), (0, 60_000_000)])
    adopted = plan(replace(CUT, position=position), broker, "adopt")
    assert adopted.position == Position((PartitionPosition(1000, 9, 90), PartitionPosition(50_000_000, 9, 80)))
    assert "the offsets of 1 of 2 partitions" in adopted.note


def test_rows_of_another_dtype_make_a_new_base() -> None:
    assert plan(replace(CUT, row_dtype=3), found(control("L", 3))).publish_base
