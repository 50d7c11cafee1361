import math
import random

import pytest

from services.common.ranker.recall_state import CO_OCCURRENCE_DEPTH, Popularity
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState
from streams.features.core import MAX_RECENT_IDS, Act, FeaturePartition
from tests.unit.streams.joiner.bench import SPEC

CATEGORIES = {"a": ("drama",), "b": ("drama", "war"), "c": ()}


def reducer() -> FeaturePartition:
    return FeaturePartition(SPEC, GlobalState(partitions=2), Popularity(SPEC.counters.half_lives_events[0]))


def act(offset: int, user: str = "u1", item: str = "a", *, kind: str = "rating", value: float = 5.0, act_id: str | None = None) -> Act:
    return Act(offset, act_id or f"f{offset}", Interaction(user, item, kind, value, 1_000 + offset))


def test_an_act_changes_exactly_the_states_of_its_user_and_item() -> None:
    one = reducer()
    assert one.apply(act(0), CATEGORIES["a"])
    user, item = UserState(), ItemState()
    interaction = act(0).interaction
    user.apply(SPEC, interaction, CATEGORIES["a"], 0)
    item.apply(SPEC, interaction, 2.0, 0)  # one act seen by one of two partitions stands for two of the whole stream
    assert one.cache.users == {"u1": user}
    assert one.cache.items == {"a": item}
    assert one.global_state.last_offset == 0
    assert one.popularity.top(one.global_state.clock, 10) == [("a", 1.0)]
    changes = one.take_changes()
    assert (changes.users, changes.items, changes.neighbours) == ({"u1"}, {"a"}, set())
    assert (changes.seen, changes.recent_ids) == ({"u1": {"a"}}, [("f0", 0)])
    assert not one.take_changes()


def test_items_of_one_user_become_neighbours_of_each_other_up_to_a_depth() -> None:
    one = reducer()
    items = [f"i{number}" for number in range(CO_OCCURRENCE_DEPTH + 2)]
    for offset, item in enumerate(items):
        one.apply(act(offset, item=item), ())
    assert set(one.cache.neighbours[items[-1]].counts) == set(items[1:-1])
    assert one.cache.neighbours[items[0]].counts == dict.fromkeys(items[1 : CO_OCCURRENCE_DEPTH + 1], 1.0)


def test_an_item_is_no_neighbour_of_itself_and_other_users_items_are_none() -> None:
    one = reducer()
    one.apply(act(0, item="a"), ())
    one.apply(act(1, item="a"), ())
    one.apply(act(2, user="u2", item="b"), ())
    assert one.cache.neighbours == {}


@pytest.mark.parametrize(
    "again",
    [act(0), act(5, act_id="f0"), act(5, kind="sneeze"), act(5, value=0.0), act(5, value=50.0), act(5, value=math.nan)],
    ids=["the same offset", "the same feedback id", "an unknown kind", "a value below the range", "a value above the range", "a null"],
)
def test_what_is_known_or_unknown_changes_nothing(again) -> None:
    one = reducer()
    one.apply(act(0), ())
    one.take_changes()
    assert not one.apply(again, ())
    assert not one.take_changes()


def test_an_act_is_forgotten_after_many_others() -> None:
    one = reducer()
    for offset in range(MAX_RECENT_IDS + 1):
        one.apply(act(offset), ())
    assert one.apply(act(10**6, act_id="f0"), ())
    assert not one.apply(act(10**6 + 1, act_id="f1000"), ())


def test_states_that_went_through_bytes_and_a_new_process_continue_as_if_nothing_had_happened() -> None:
    random_ = random.Random(1)
    acts = [
        act(offset, f"u{random_.randrange(5)}", f"i{random_.randrange(8)}", value=float(random_.randrange(1, 6))) for offset in range(300)
    ]
    straight, interrupted = reducer(), reducer()
    for each in acts:
        straight.apply(each, ("drama",))
    for each in acts:
        interrupted.apply(each, ("drama",))
        if random_.random() < 0.1:
            interrupted = restarted(interrupted)
            for old in acts[max(0, each.offset - 5) : each.offset + 1]:
                assert not interrupted.apply(old, ("drama",))
    assert packed(interrupted) == packed(straight)


def restarted(old: FeaturePartition) -> FeaturePartition:
    popularity = Popularity(old.popularity.half_life_events, dict(old.popularity.counts))
    fresh = FeaturePartition(SPEC, GlobalState.from_bytes(old.global_state.to_bytes()), popularity, list(old._recent.items()))
    fresh.cache.users = {name: UserState.from_bytes(SPEC, state.to_bytes()) for name, state in old.cache.users.items()}
    fresh.cache.items = {name: ItemState.from_bytes(SPEC, state.to_bytes(SPEC)) for name, state in old.cache.items.items()}
    fresh.cache.neighbours = {name: type(state).from_bytes(state.to_bytes(), state.limit) for name, state in old.cache.neighbours.items()}
    return fresh


def packed(one: FeaturePartition) -> dict[str, bytes]:
    states = {f"u:{name}": state.to_bytes() for name, state in one.cache.users.items()}
    states |= {f"i:{name}": state.to_bytes(SPEC) for name, state in one.cache.items.items()}
    states |= {f"n:{name}": state.to_bytes() for name, state in one.cache.neighbours.items()}
    return states | {"g": one.global_state.to_bytes()}


def test_the_cache_forgets_what_came_first() -> None:
    one = reducer()
    for offset in range(10):
        one.apply(act(offset, user=f"u{offset}", item=f"i{offset}"), ())
    one.cache.trim(3)
    assert list(one.cache.users) == ["u7", "u8", "u9"]
    assert list(one.cache.items) == ["i7", "i8", "i9"]
