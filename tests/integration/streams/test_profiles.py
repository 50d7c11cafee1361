"""profiles.v1 on a real broker, through the feature stream's process, into a real Redis, to the recommender."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.attributes import MAX_BYTES, MAX_TEXT_BYTES
from services.common.events.dead_letter_reasons import MALFORMED
from services.common.events.profile import Profile
from services.common.events.topics import PROFILES
from services.common.events.wire.profile import profile_bytes, profile_of
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.ranker.feature_records import profile_key, user_key
from services.common.ranker.states import Interaction, UserState
from services.recommender.redis_features import RedisFeatureStore, connect
from streams.features.profile_store import Position, ProfileStore, position_key
from tests.integration.streams.traffic import PARTITIONS, SESSION_TIMEOUT_MS, SPEC, SPEC_PATH, Process, Traffic
from tests.limits import seconds
from tests.waiting import eventually
from tunemesh_client import AsyncEventProducer, EventProducer
from tunemesh_client import Profile as ProfileOfClient

pytestmark = pytest.mark.integration

RECORDED = {
    name.removeprefix("profile/"): each
    for name, each in json.loads((Path(__file__).parents[2] / "recorded" / "events.json").read_text(encoding="utf-8")).items()
    if name.startswith("profile/")
}
ATTRIBUTES = {"adult": False, "embedding": (0.5, -1.25), "moods": ("dark", "slow"), "price": 7.5, "studio": "Käse", "year": 1995}
REFUSED = {"confluent/avro", "sdk2/binary/list", "sdk2/structured/list"}


@pytest.fixture
def traffic(fresh_broker, mesh_topics) -> Iterator[Traffic]:
    mesh_topics(fresh_broker.bootstrap, user_partitions=PARTITIONS)
    with Traffic(fresh_broker.bootstrap) as sender:
        yield sender


@pytest.fixture
def features(fresh_broker, redis_url: str, tmp_path: Path) -> Iterator[Callable[[], Process]]:
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap,
        "REDIS_URL": redis_url,
        "TUNEMESH_FEATURE_SPEC": str(SPEC_PATH),
        "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_FEATURES_PORT": "0",
        "TUNEMESH_FEATURES_SESSION_TIMEOUT_MS": SESSION_TIMEOUT_MS,
    }
    started: list[Process] = []

    def start() -> Process:
        process = Process("streams.features", tmp_path / f"features-{len(started)}.log", env)
        started.append(process)
        process.wait_for("are followed from offset", count=PARTITIONS)
        return process

    yield start
    for process in started:
        process.stop()


def known(redis_url: str) -> dict[str, dict[str, Any]]:
    """What Redis holds, by user; what goes while it is read is not there."""
    with Redis.from_url(redis_url) as redis:
        values = {key.decode(): redis.get(key) for key in redis.keys(profile_key("*"))}
    found = {key: profile_of(value) for key, value in values.items() if value is not None}
    assert all(key == profile_key(profile.user_id) for key, profile in found.items())
    return {profile.user_id: dict(profile.attributes) for profile in found.values()}


def letters(bootstrap: str) -> list[DeadLetter]:
    consumer = assigned_consumer(bootstrap, PROFILES.dlq, start="beginning", client_id="test")
    try:
        return [DeadLetter.FromString(record.value) for record in drain_to_end(consumer)]
    finally:
        consumer.close()


def test_profiles_of_every_writer_are_in_redis_and_bad_ones_among_the_dead_letters(traffic, features, redis_url, fresh_broker) -> None:
    process = features()
    with EventProducer(fresh_broker.bootstrap, deadline_s=seconds(30)) as producer:
        producer.put_profile(ProfileOfClient("ada", {"city": "Oslo", "age": 31}))
        producer.put_profiles([ProfileOfClient(7.0, {"age": 1}), ProfileOfClient("bob", {"age": 40}), ProfileOfClient("7", {"age": 2})])
        producer.delete_profile("bob")

    async def by_asyncio() -> None:
        async with AsyncEventProducer(fresh_broker.bootstrap, deadline_s=seconds(30)) as writing:
            await writing.put_profile(ProfileOfClient("eve", {"tastes": ["jazz"]}))
            await writing.put_profile(ProfileOfClient("tom", {"tastes": ["soul"]}))
            await writing.delete_profile("tom")

    asyncio.run(by_asyncio())
    sent = traffic.producer.send
    sent(PROFILES.name, key=b"plain", value=b'{"attributes":{"city":"Bergen"}}')
    sent(PROFILES.name, key=b"gone", value=b'{"user_id":"gone","attributes":{"a":1}}')
    sent(PROFILES.name, key=b"gone", value=b"null")
    sent(PROFILES.name, key=b"plain", value=b'{"attributes":{"city":NaN}}')  # the one before stays
    traffic.producer.flush()
    expected = {"ada": {"age": 31, "city": "Oslo"}, "7": {"age": 2}, "eve": {"tastes": ("jazz",)}, "plain": {"city": "Bergen"}}
    eventually(lambda: known(redis_url), lambda found: found == expected)
    for writer, each in RECORDED.items():
        headers = [(name, base64.b64decode(raw)) for name, raw in each["headers"].items()]
        sent(PROFILES.name, key=b"1001", value=base64.b64decode(each["value"]), headers=headers)
        if writer not in REFUSED:  # before it is deleted and the next one writes it
            eventually(lambda: known(redis_url).get("1001"), lambda found: found == ATTRIBUTES)
        sent(PROFILES.name, key=b"1001", value=None)
        eventually(lambda: known(redis_url), lambda found: found == expected)
    found = eventually(lambda: letters(fresh_broker.bootstrap), lambda some: len(some) == len(REFUSED) + 1)
    assert {each.reason for each in found} == {MALFORMED}
    assert {each.source_topic for each in found} == {PROFILES.name}
    assert sum("attributes.city: nan is not finite" in each.detail for each in found) == 1
    assert process.stop() == 0


def put(traffic: Traffic, profiles: dict[str, int | None]) -> None:
    for user_id, age in profiles.items():
        value = None if age is None else profile_bytes(Profile(user_id=user_id, attributes={"age": age}))
        traffic.producer.send(PROFILES.name, key=user_id.encode(), value=value)
    traffic.producer.flush()


def ages(redis_url: str) -> dict[str, int]:
    return {user_id: attributes["age"] for user_id, attributes in known(redis_url).items()}


def test_a_worker_that_is_killed_or_finds_redis_emptied_has_every_profile_again(traffic, features, redis_url) -> None:
    first = features()
    put(traffic, {f"u{number}": number for number in range(300)})
    eventually(lambda: len(ages(redis_url)), lambda count: count > 0)
    first.kill()
    put(traffic, {**{f"u{number}": -number for number in range(0, 300, 2)}, "u1": None, "u299": None})
    expected = {f"u{number}": number if number % 2 else -number for number in range(300) if number not in (1, 299)}
    second = features()
    eventually(lambda: ages(redis_url), lambda found: found == expected)
    with Redis.from_url(redis_url) as redis:
        redis.flushdb()
    put(traffic, {"u0": 1_000})  # it is noticed with the next record of a partition, or within ten seconds
    eventually(lambda: ages(redis_url), lambda found: found == {**expected, "u0": 1_000})
    assert second.has_said("Redis is elsewhere than it was left")


async def test_only_who_is_where_redis_is_writes(redis_url) -> None:
    one, other = ProfileStore(redis_url), ProfileStore(redis_url)
    data = [profile_bytes(Profile(user_id="ada", attributes={"age": age})) for age in range(3)]
    try:
        assert await one.position(0) is None
        assert await one.save(0, {"ada": data[0], "bob": data[1]}, None, Position(7, 2))
        assert not await other.save(0, {"ada": data[2]}, None, Position(7, 1))  # a worker that was away
        assert await other.position(0) == Position(7, 2)
        assert await other.save(0, {"ada": data[2], "bob": None}, Position(7, 2), Position(7, 4))
        assert not await one.save(0, {"ada": data[0]}, Position(7, 2), Position(7, 3))
        assert await one.save(1, {}, None, Position(7, 9))  # another partition, and nothing to write
        with Redis.from_url(redis_url) as redis:
            assert redis.get(profile_key("ada")) == data[2]
            assert redis.get(profile_key("bob")) is None
            redis.set(position_key(0), b"?")
        assert await one.position(0) is None
        assert await one.save(0, {"ada": data[0]}, None, Position(7, 1))
    finally:
        await one.close()
        await other.close()


async def test_the_recommender_reads_the_profile_with_the_users_state_in_one_round_trip(redis_url, monkeypatch) -> None:
    client = connect(redis_url, seconds(5))
    store = RedisFeatureStore(client, SPEC, user_partitions=2, cache_ttl_s=60.0, cache_size=10, backoff_s=0.0)
    state, commands = UserState(), list[tuple[Any, ...]]()
    state.apply(SPEC, Interaction("ada", "10", "rating", 4.0, 0), [], 1)
    execute = client.execute_command
    monkeypatch.setattr(client, "execute_command", lambda *command: commands.append(command) or execute(*command))
    try:
        assert (await store.read("ada", ["10"])).profile == {}
        with Redis.from_url(redis_url) as redis:
            redis.set(user_key("ada"), state.to_bytes())
            redis.set(profile_key("ada"), profile_bytes(Profile(user_id="ada", attributes={"age": 31, "tastes": ("jazz",)})))
            redis.set(profile_key("eve"), profile_bytes(Profile(user_id="ada", attributes={"age": 31})))
            redis.set(profile_key("bob"), b"\xff")
        commands.clear()
        found = await store.read("ada", ["10"])
        assert len(commands) == 1
        assert found.user == state and found.profile == {"age": 31, "tastes": ("jazz",)}
        # What cannot be read, or is another user's, counts as absent.
        assert (await store.read("eve", ["10"])).profile == {}
        assert (await store.read("bob", ["10"])).profile == {}
        assert (await store.read("new", ["10"])).profile == {}
    finally:
        await store.close()


async def test_a_profile_of_the_largest_size_goes_through_redis_and_a_larger_one_counts_as_damaged(redis_url) -> None:
    """The bound holds at ten times itself, too: whatever another writer put there, a request does not pay for it."""
    largest = {f"{number}": "x" * (MAX_TEXT_BYTES - 1) for number in range(MAX_BYTES // MAX_TEXT_BYTES)}
    too_large = {f"{number}": "x" * MAX_TEXT_BYTES for number in range(10 * MAX_BYTES // MAX_TEXT_BYTES)}
    store = RedisFeatureStore(connect(redis_url, seconds(5)), SPEC, user_partitions=2, cache_ttl_s=0.0, cache_size=10, backoff_s=0.0)
    try:
        with Redis.from_url(redis_url) as redis:
            redis.set(profile_key("ada"), profile_bytes(Profile(user_id="ada", attributes=largest)))
            redis.set(profile_key("eve"), profile_bytes(Profile(user_id="eve", attributes=too_large)))
        assert (await store.read("ada", ["10"])).profile == largest
        assert (await store.read("eve", ["10"])).profile == {}
    finally:
        await store.close()
