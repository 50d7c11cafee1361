from __future__ import annotations

import numpy as np
import pytest

from services.common.platform.errors import CorruptArtifact
from services.common.platform.ids import entity_key
from services.common.ranker.feature_records import pack_records, unpack_records
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import build_features
from services.common.ranker.states import GlobalState, HistoryEntry, Interaction, ItemState, UserState, merge_globals, merge_item_bytes

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")


def rating(user: str, item: str, stars: float) -> Interaction:
    return Interaction(user_id=user, item_id=item, kind="rating", value=stars, time_ms=0)


class Partition:
    """The states of one source partition, driven as the stream app drives them."""

    def __init__(self, partitions: int = 1) -> None:
        self.global_ = GlobalState(partitions=partitions)
        self.items: dict[str, ItemState] = {}
        self.users: dict[str, UserState] = {}

    def take(self, interaction: Interaction, offset: int, categories: tuple[str, ...] = ()) -> None:
        self.global_.apply(SPEC, interaction, categories, offset)
        self.items.setdefault(interaction.item_id, ItemState()).apply(SPEC, interaction, self.global_.clock, offset)
        self.users.setdefault(interaction.user_id, UserState()).apply(SPEC, interaction, categories, offset)

    def bytes_of(self, items: list[str]) -> list[bytes | None]:
        return [self.items[item].to_bytes(SPEC) if item in self.items else None for item in items]


def column(features_NF: np.ndarray, name: str) -> np.ndarray:
    return features_NF[:, SPEC.item_columns.index(name)].astype(np.float64)


def test_states_survive_packing() -> None:
    partition = Partition(partitions=3)
    for offset, stars in enumerate([5, 3, 1, 4]):
        partition.take(rating("ü", f"item-{offset % 2}", stars), offset, ("Drama", "Sci-Fi"))
    user, item, global_ = partition.users["ü"], partition.items["item-0"], partition.global_
    assert UserState.from_bytes(SPEC, user.to_bytes()) == user
    assert ItemState.from_bytes(SPEC, item.to_bytes(SPEC)) == item
    assert GlobalState.from_bytes(global_.to_bytes()) == global_


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_damaged_state_is_refused(cut: int) -> None:
    partition = Partition()
    partition.take(rating("u", "i", 5), 0, ("Drama",))
    with pytest.raises(CorruptArtifact):
        UserState.from_bytes(SPEC, partition.users["u"].to_bytes()[:-cut])
    with pytest.raises(CorruptArtifact):
        ItemState.from_bytes(SPEC, partition.items["i"].to_bytes(SPEC)[:-cut])
    with pytest.raises(CorruptArtifact):
        merge_item_bytes(SPEC, [[partition.items["i"].to_bytes(SPEC)[:-cut]]], [partition.global_])


def test_an_offset_seen_before_changes_nothing() -> None:
    partition = Partition()
    partition.take(rating("u", "i", 5), 7, ("Drama",))
    before = (partition.users["u"].to_bytes(), partition.items["i"].to_bytes(SPEC), partition.global_.to_bytes())
    for offset in (7, 3):
        partition.take(rating("u", "i", 1), offset, ("Drama",))
    assert before == (partition.users["u"].to_bytes(), partition.items["i"].to_bytes(SPEC), partition.global_.to_bytes())


def test_history_is_newest_first_and_bounded() -> None:
    user = UserState()
    for number in range(SPEC.history.length + 5):
        user.apply(SPEC, rating("u", str(number), 5), (), number)
    assert len(user.history) == SPEC.history.length
    assert user.history[0] == HistoryEntry(str(SPEC.history.length + 4), 1.0)


def test_merged_partials_equal_one_partition_that_saw_everything_when_nothing_decays() -> None:
    whole, left, right = Partition(), Partition(2), Partition(2)
    for offset in range(40):
        event = rating(f"u{offset}", f"i{offset % 3}", 1 + offset % 5)
        whole.take(event, offset)
        (left, right)[offset % 2].take(event, offset)
    items = ["i0", "i1", "i2", "absent"]
    one = merge_item_bytes(SPEC, [whole.bytes_of(items)], [whole.global_])
    two = merge_item_bytes(SPEC, [[None] * 4, left.bytes_of(items), right.bytes_of(items)], [None, left.global_, right.global_])
    np.testing.assert_allclose(one.tally_N3, two.tally_N3)
    np.testing.assert_allclose(one.value_sq_sum_N, two.value_sq_sum_N)
    # The split clock is an estimate (whole events, in steps of two), so decayed counters agree closely, not exactly.
    np.testing.assert_allclose(one.decayed_NH3, two.decayed_NH3, rtol=0.01)
    assert merge_globals([left.global_, None, right.global_]).tally == whole.global_.tally


def test_the_base_partial_decays_with_live_events() -> None:
    base, live = Partition(), Partition()
    base.take(rating("u", "old", 5), 0)
    half_life = SPEC.counters.half_lives_events[0]
    for offset in range(int(half_life)):
        live.take(rating("u", "new", 5), offset)
    matrix = merge_item_bytes(SPEC, [base.bytes_of(["old"]), live.bytes_of(["old"])], [base.global_, live.global_])
    assert matrix.decayed_NH3[0, 0, 0] == pytest.approx(0.5)
    assert matrix.tally_N3[0, 0] == 1


def test_unknown_user_and_item_get_finite_cold_start_features() -> None:
    matrix = merge_item_bytes(SPEC, [[None, None]], [None])
    features = build_features(SPEC, "nobody", None, matrix, [[], ["Drama"]], merge_globals([None]))
    assert features.user_key == entity_key("nobody")
    assert features.user_U.shape == (len(SPEC.user_columns),)
    assert features.items_NF.shape == (2, len(SPEC.item_columns))
    assert features.items_NF.dtype == np.float16
    assert np.isfinite(features.items_NF.astype(np.float32)).all()
    assert np.isfinite(features.user_U.astype(np.float32)).all()
    assert features.user_U[SPEC.user_columns.index("is_new")] == 1
    assert column(features.items_NF, "is_new").tolist() == [1, 1]
    assert len(features.history_keys_L) == 0


def test_features_tell_popular_from_rare_and_liked_from_disliked() -> None:
    partition = Partition()
    for offset in range(60):
        partition.take(rating(f"u{offset}", "hit", 5), 2 * offset, ("Comedy",))
        if offset % 10 == 0:
            partition.take(rating(f"u{offset}", "flop", 1), 2 * offset + 1, ("Horror",))
    for offset in range(200, 206):
        partition.take(rating("me", f"x{offset}", 5), offset, ("Horror",))
    items = ["hit", "flop"]
    matrix = merge_item_bytes(SPEC, [partition.bytes_of(items)], [partition.global_])
    features = build_features(SPEC, "me", partition.users["me"], matrix, [["Comedy"], ["Horror"]], merge_globals([partition.global_]))
    for name in ("log_count", "mean", "log_rate_500", "expected_value"):
        hit, flop = column(features.items_NF, name)
        assert hit > flop, name
    comedy, horror = column(features.items_NF, "category_lift_mean")
    assert horror > 0 > comedy


def test_a_users_tally_of_categories_is_bounded_and_keeps_the_frequent_ones() -> None:
    user = UserState()
    limit = SPEC.counters.max_user_categories
    for number in range(limit * 2):
        user.apply(SPEC, rating("u", "i", 5), ("Drama", f"tag-{number}"), number)
    assert len(user.categories) == limit
    assert user.categories["Drama"].acts == limit * 2


def test_records_survive_packing_and_a_cut_is_noticed() -> None:
    records = [("tm:u:1", b"abc"), ("tm:i:ü:b", b""), ("tm:g:b", b"\x00\xff")]
    arrays = pack_records(records)
    assert unpack_records(arrays) == records
    assert unpack_records(pack_records([])) == []
    with pytest.raises(CorruptArtifact):
        unpack_records({**arrays, "values": arrays["values"][:-1]})
