from __future__ import annotations

import numpy as np
import pytest

from services.common.ranker import exposure_block
from services.common.ranker.feature_records import BASE_PARTIAL, global_key, item_key, seen_key, user_key
from services.common.ranker.recall_state import unpack_ids
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState
from services.trainer.batch import FeatureStates, replay
from services.trainer.event_samples import draw_others
from services.trainer.replay_order import BatchConfig, replay_order
from tests.learning import CATEGORIES, ITEMS, SPEC, interactions


def test_a_group_has_one_positive_and_negatives_at_the_keep_rate() -> None:
    config = BatchConfig()
    groups = list(replay(SPEC, replay_order(interactions(300), config), ITEMS, FeatureStates(SPEC, CATEGORIES), config, 0))
    assert len(groups) == 300
    for group in groups:
        assert group.samples[0].revision == 1
        assert all(sample.revision == 0 for sample in group.samples[1:])
        assert exposure_block.num_items(group.features_block) == len(group.samples)
    kept = np.mean([len(group.samples) - 1 for group in groups])
    assert kept == pytest.approx(99 * SPEC.negatives.keep_rate, rel=0.1)


def test_features_contain_nothing_of_the_own_block_or_later() -> None:
    events = interactions(60)
    config = BatchConfig(feature_lag_s=0.0)
    whole = list(replay(SPEC, replay_order(events, config), ITEMS, FeatureStates(SPEC, CATEGORIES), config, 0))
    cut = list(replay(SPEC, replay_order(events[:30], config), ITEMS, FeatureStates(SPEC, CATEGORIES), config, 0))
    assert [group.features_block for group in whole[:30]] == [group.features_block for group in cut]


def test_events_of_one_second_are_exposed_before_any_of_them_counts() -> None:
    together = interactions(5, num_users=1)
    same_second = [type(one)(one.user_id, one.item_id, one.kind, one.value, 1000) for one in together]
    config = BatchConfig(feature_lag_s=0.0)
    groups = list(replay(SPEC, replay_order(same_second, config), ITEMS, FeatureStates(SPEC, CATEGORIES), config, 0))
    assert all(len(exposure_block.decode(group.features_block, SPEC).history_keys_L) == 0 for group in groups)


def test_candidates_are_never_items_that_the_user_has_chosen_before() -> None:
    config = BatchConfig()
    placed = replay_order(interactions(300, num_users=3), config)
    chosen: dict[str, set[str]] = {}
    for event, group in zip(placed, replay(SPEC, placed, ITEMS, FeatureStates(SPEC, CATEGORIES), config, 0), strict=True):
        mine = chosen.setdefault(group.user_id, set())
        assert not mine & {sample.item_id for sample in group.samples[1:]}
        mine.add(event.interaction.item_id)


def test_passes_draw_other_candidates_and_a_repeated_pass_the_same() -> None:
    config = BatchConfig()
    placed = replay_order(interactions(20), config)
    first, again, second = (
        [group.SerializeToString() for group in replay(SPEC, placed, ITEMS, FeatureStates(SPEC, CATEGORIES), config, epoch)]
        for epoch in (0, 0, 1)
    )
    assert first == again
    assert all(left != right for left, right in zip(first, second, strict=True))


def test_drawing_from_a_large_catalogue_is_distinct_and_leaves_out_what_is_excluded() -> None:
    catalogue = [str(item) for item in range(5_000)]
    drawn = draw_others(np.random.default_rng(0), catalogue, {"1", "2"}, 99)
    assert len(set(drawn)) == 99
    assert not {"1", "2"} & set(drawn)
    assert sorted(draw_others(np.random.default_rng(0), ["a", "b", "c"], {"b"}, 99)) == ["a", "c"]


def test_records_are_the_states_that_the_stream_would_hold() -> None:
    states = FeatureStates(SPEC, CATEGORIES)
    events = interactions(50)
    for event in events:
        states.apply(event)
    records = dict(states.records())
    user = UserState.from_bytes(SPEC, records[user_key(events[-1].user_id)])
    assert user.history[0].item_id == events[-1].item_id
    assert events[-1].item_id in unpack_ids(records[seen_key(events[-1].user_id)])
    assert GlobalState.from_bytes(records[global_key("b")]).tally.acts == 50
    total = sum(ItemState.from_bytes(SPEC, raw).tally.acts for key, raw in records.items() if key.startswith("tm:i:"))
    assert total == 50
    assert item_key(events[0].item_id, "b") in records


def test_more_distinct_categories_than_could_be_counted_are_packed_all_the_same() -> None:
    categories = {str(item): tuple(f"tag {item * 256 + number}" for number in range(256)) for item in range(300)}  # 76,800
    states = FeatureStates(SPEC, categories)
    for item in categories:
        states.apply(Interaction("u", item, "rating", 4.0, 0))
    packed = dict(states.records())
    assert len(packed[global_key(BASE_PARTIAL)]) < 300_000
