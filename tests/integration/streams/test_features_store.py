"""The feature stream's core, worker and store, and the recommender, on a real Redis whose states are of another feature spec or damaged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from tunemesh.events.v1 import feedback_pb2

from services.common.platform.clock import wall_ms
from services.common.ranker.feature_records import global_key, item_key, neighbours_key, popular_key, user_key
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState
from services.recommender.redis_features import RedisFeatureStore
from streams.features.app import PartitionWorker
from streams.features.catalog import CatalogFollower
from streams.features.core import Act, FeaturePartition
from streams.features.settings import FeaturesSettings
from streams.features.store import FeatureStore, popularity_counts_key, recent_ids_key
from streams.strikes import Strikes
from tests import old_states
from tests.integration.streams.traffic import SPEC
from tests.limits import seconds

pytestmark = pytest.mark.integration


def spec_with(*half_lives: float) -> FeatureSpec:
    return FeatureSpec.parse(SPEC.model_dump(mode="json") | {"counters": {"half_lives_events": list(half_lives)}})


OLD = spec_with(500, 5000)
NEW_SPECS = [spec_with(50, 500, 5000), spec_with(5000), spec_with(40, 700)]


def act(number: int, user: str = "", item: str = "") -> Act:
    return Act(number, f"f{number}", Interaction(user or f"u{number % 7}", item or f"i{number % 5}", "rating", 1.0 + number % 5, 0))


async def take(url: str, spec: FeatureSpec, acts: list[Act]) -> FeaturePartition:
    """Apply and write acts of partition 0, as one batch."""
    store = FeatureStore(url, spec, 1)
    try:
        reducer = await store.open(0)
        await store.load(0, reducer, [one.interaction.user_id for one in acts], [one.interaction.item_id for one in acts])
        assert all(reducer.apply(one, ()) for one in acts)
        await store.save(0, reducer, reducer.take_changes())
        return reducer
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def recommender(url: str, spec: FeatureSpec) -> AsyncIterator[RedisFeatureStore]:
    store = RedisFeatureStore(AsyncRedis.from_url(url), spec, user_partitions=1, cache_ttl_s=0.0, cache_size=100, backoff_s=0.0)
    yield store
    await store.close()


def make_old(url: str, reducer: FeaturePartition) -> None:
    """Write what `reducer` holds as it was written before states said their half-lives."""
    with Redis.from_url(url) as redis:
        for item_id, state in reducer.cache.items.items():
            redis.set(item_key(item_id, "0"), old_states.item_bytes(state))
            redis.hset(popularity_counts_key(0), item_id, old_states.popularity_bytes(*reducer.popularity.counts[item_id]))


@pytest.mark.parametrize("is_marked", [True, False])
@pytest.mark.parametrize("spec", NEW_SPECS)
async def test_a_spec_with_other_half_lives_goes_on_from_the_states_of_the_old_one(
    redis_url: str, spec: FeatureSpec, is_marked: bool
) -> None:
    before = await take(redis_url, OLD, [act(number) for number in range(300)])
    if not is_marked:
        make_old(redis_url, before)
    kept = {one: at for at, one in enumerate(OLD.counters.half_lives_events) if one in spec.counters.half_lives_events}
    async with recommender(redis_url, OLD) as store:
        old = await store.read("u1", ["i0", "i1"])
    async with recommender(redis_url, spec) as store:
        new = await store.read("u1", ["i0", "i1"])
        assert [item_id for item_id, _ in await store.popular(9)] == [item_id for item_id, _ in before.popularity.top(300, 9)]
    assert new.user == old.user and new.total == old.total
    assert (new.items.tally_N3 == old.items.tally_N3).all() and (new.items.value_sq_sum_N == old.items.value_sq_sum_N).all()
    if is_marked:
        for half_life, at in kept.items():
            assert (new.items.decayed_NH3[:, spec.counters.half_lives_events.index(half_life)] == old.items.decayed_NH3[:, at]).all()
    after = await take(redis_url, spec, [act(number) for number in range(300, 400)])
    assert {item: state.tally.acts for item, state in after.cache.items.items()} == dict.fromkeys(("i0", "i1", "i2", "i3", "i4"), 80.0)
    assert after.popularity.half_life_events == spec.counters.half_lives_events[0]
    async with recommender(redis_url, spec) as store:
        assert (await store.read("u1", ["i0"])).items.tally_N3[0, 0] == 80


def damage(url: str, key: str, value: bytes) -> None:
    with Redis.from_url(url) as redis:
        redis.set(key, value)


@pytest.mark.parametrize("key", [user_key("u1"), item_key("i1", "0"), neighbours_key("i1", "0"), global_key("0"), popular_key("0")])
async def test_a_damaged_state_is_absent_to_the_recommender_until_the_next_write(redis_url: str, key: str) -> None:
    await take(redis_url, SPEC, [act(number) for number in range(300)])
    damage(redis_url, key, b"\xff" * 9)
    async with recommender(redis_url, SPEC) as store:
        state = await store.read("u1", ["i1", "i2"])
        assert state.items.tally_N3[:, 0].tolist() == [0.0 if key == item_key("i1", "0") else 60.0, 60.0]
        assert (state.user is None) == (key == user_key("u1"))
        await store.popular(5)
        await store.neighbours(["i1"])
    await take(redis_url, SPEC, [act(300, user="u1", item="i1"), act(301, user="u1", item="i2")])
    async with recommender(redis_url, SPEC) as store:
        state = await store.read("u1", ["i1"])
        assert state.user is not None and state.items.tally_N3[0, 0] >= 1 and len(await store.popular(9)) == 5
    with Redis.from_url(redis_url) as redis:
        assert redis.get(key) != b"\xff" * 9


async def test_a_lost_global_state_is_rebuilt_with_its_offset_and_its_clock(redis_url: str) -> None:
    before = await take(redis_url, SPEC, [act(number) for number in range(300)])
    damage(redis_url, global_key("0"), b"?")
    store = FeatureStore(redis_url, SPEC, 1)
    reducer = await store.open(0)
    await store.close()
    assert (reducer.global_state.last_offset, reducer.global_state.clock) == (299, before.global_state.clock)
    assert not reducer.apply(act(299), ()), "it is known already"


async def test_a_damaged_popularity_count_is_left_out(redis_url: str) -> None:
    await take(redis_url, SPEC, [act(number) for number in range(300)])
    with Redis.from_url(redis_url) as redis:
        redis.hset(popularity_counts_key(0), "i1", b"?")
        redis.hset(popularity_counts_key(0), "i2", old_states.popularity_bytes(-1.0, 3.0))
        redis.hset(popularity_counts_key(0), b"\xff", old_states.popularity_bytes(1.0, 3.0))
        redis.zadd(recent_ids_key(0), {b"\xff\xff": 250})
    store = FeatureStore(redis_url, SPEC, 1)
    reducer = await store.open(0)
    await store.close()
    assert {"i0", "i3", "i4"} <= reducer.popularity.counts.keys() and not {"i1", "i2"} & reducer.popularity.counts.keys()


async def test_feedback_about_a_damaged_state_kills_no_worker_and_is_not_lost(redis_url: str, tmp_path: Path) -> None:
    await take(redis_url, SPEC, [act(number) for number in range(10)])
    for key in (user_key("u1"), item_key("i1", "0"), neighbours_key("i1", "0"), global_key("0")):
        damage(redis_url, key, b"?")
    settings = FeaturesSettings(redis_url=redis_url, user_partitions=1, flush_interval_ms=1)
    store, catalog, strikes = FeatureStore(redis_url, SPEC, 1), CatalogFollower(), Strikes(tmp_path / "strikes")
    catalog.ready.set()
    acked: list[int] = []

    async def set_aside(_message: Any, _reason: str, why: str) -> None:
        raise AssertionError(f"set aside: {why}")

    worker = PartitionWorker(0, settings, store, catalog, strikes, set_aside, lambda message: acked.append(message.offset))
    for offset in range(10, 20):
        feedback = feedback_pb2.Feedback(feedback_id=f"f{offset}", request_id="r", user_id="u1", item_id="i1", kind="rating", value=4.0)
        feedback.accepted_at_ms = wall_ms()
        value = feedback.SerializeToString()
        message = SimpleNamespace(topic="feedback.v1", partition=0, offset=offset, key=b"u1", value=value, headers=())
        await worker.take(message)
    running = asyncio.create_task(worker.run(await store.open(0)))
    try:
        async with asyncio.timeout(seconds(20)):
            while len(acked) < 10 and not running.done():
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.wait([running])
        await store.close()
        strikes.close()
    assert acked == list(range(10, 20)) and worker.num_applied == 10
    with Redis.from_url(redis_url) as redis:
        user, item = redis.get(user_key("u1")), redis.get(item_key("i1", "0"))
        assert UserState.from_bytes(SPEC, user).tally.acts == ItemState.from_bytes(SPEC, item).tally.acts == 10
        assert GlobalState.from_bytes(redis.get(global_key("0"))).last_offset == 19
