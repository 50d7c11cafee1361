"""The feature stream as a process on a real broker and a real Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from tunemesh.catalog.v1 import catalog_item_pb2
from tunemesh.events.v1 import feedback_pb2

from services.common.events.wire.feedback import feedback_of
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.ranker.feature_records import global_key, item_key, neighbours_key, popular_key, seen_key, user_key
from services.common.ranker.recall_state import MAX_POPULAR, Popularity, pack_popular
from services.common.ranker.states import GlobalState, Interaction
from streams.features.core import Act, FeaturePartition
from streams.features.store import popularity_counts_key, recent_ids_key
from tests.integration.streams.traffic import PARTITIONS, SESSION_TIMEOUT_MS, SPEC, SPEC_PATH, Process, Traffic
from tests.limits import seconds

pytestmark = pytest.mark.integration
GENRES = ("drama", "war", "comedy", "crime")


def genres_of(item_id: str) -> list[str]:
    return [genre for number, genre in enumerate(GENRES) if int(item_id) >> number & 1]


@pytest.fixture
def traffic(fresh_broker, mesh_topics) -> Iterator[Traffic]:
    mesh_topics(fresh_broker.bootstrap, user_partitions=PARTITIONS)
    with Traffic(fresh_broker.bootstrap) as sender:
        for item in range(200):
            message = catalog_item_pb2.CatalogItem(item_id=str(item), title=f"item {item}", categories=genres_of(str(item)))
            sender.send("catalog.v1", str(item), message.SerializeToString())
        sender.producer.flush()
        yield sender


@pytest.fixture
def env(fresh_broker, redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap,
        "REDIS_URL": redis_url,
        "TUNEMESH_FEATURE_SPEC": str(SPEC_PATH),
        "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_FEATURES_PORT": "0",
        "TUNEMESH_FEATURES_SESSION_TIMEOUT_MS": SESSION_TIMEOUT_MS,
    }


@pytest.fixture
def features(env, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*, wait: bool = True) -> Process:
        process = Process("streams.features", tmp_path / f"features-{len(started)}.log", env)
        started.append(process)
        if wait:
            process.wait_for("taken up", count=PARTITIONS)
        return process

    yield start
    for process in started:
        process.stop()


def log_of(bootstrap: str) -> list[list]:
    """Records of feedback.v1 by partition, to its end."""
    consumer = assigned_consumer(bootstrap, "feedback.v1", start="beginning", client_id="test")
    records: list[list] = [[] for _ in range(PARTITIONS)]
    try:
        for record in drain_to_end(consumer):
            records[record.partition].append(record)
    finally:
        consumer.close()
    return records


def expected_state(bootstrap: str) -> dict[str, object]:
    """What the pure reducers make of the log, as Redis would hold it."""
    state: dict[str, object] = {}
    for partition, records in enumerate(log_of(bootstrap)):
        reducer = FeaturePartition(SPEC, GlobalState(partitions=PARTITIONS), Popularity(SPEC.counters.half_lives_events[0]))
        seen: dict[str, set[bytes]] = {}
        for record in records:
            message = feedback_pb2.Feedback.FromString(record.value)
            interaction = Interaction(message.user_id, message.item_id, message.kind, message.value, message.accepted_at_ms)
            if reducer.apply(Act(record.offset, feedback_of(message).act_id, interaction), genres_of(message.item_id)):
                seen.setdefault(message.user_id, set()).add(message.item_id.encode())
        name = str(partition)
        state |= {user_key(user): value.to_bytes() for user, value in reducer.cache.users.items()}
        state |= {item_key(item, name): value.to_bytes(SPEC) for item, value in reducer.cache.items.items()}
        state |= {neighbours_key(item, name): value.to_bytes() for item, value in reducer.cache.neighbours.items()}
        state |= {seen_key(user): items for user, items in seen.items()}
        state[global_key(name)] = reducer.global_state.to_bytes()
        state[popular_key(name)] = pack_popular(
            reducer.popularity.half_life_events, reducer.popularity.top(reducer.global_state.clock, MAX_POPULAR)
        )
    return state


def state_in_redis(url: str) -> dict[str, object]:
    state: dict[str, object] = {}
    private = {key(partition) for key in (popularity_counts_key, recent_ids_key) for partition in range(PARTITIONS)}
    with Redis.from_url(url) as redis:
        for key in redis.keys("*"):
            name = key.decode()
            if name not in private:
                state[name] = redis.smembers(key) if name.startswith(seen_key("")) else redis.get(key)
    return state


def wait_until_applied(url: str, bootstrap: str, process: Process) -> None:
    ends = [records[-1].offset for records in log_of(bootstrap)]
    deadline = time.monotonic() + seconds(40)
    with Redis.from_url(url) as redis:
        while True:
            raw = [redis.get(global_key(str(partition))) for partition in range(PARTITIONS)]
            reached = [GlobalState.from_bytes(value).last_offset if value else -1 for value in raw]
            if all(offset >= end for offset, end in zip(reached, ends, strict=True)):
                return
            assert time.monotonic() < deadline, f"at {reached} of {ends}:\n{process.log.read_text()}"
            time.sleep(0.1)


# Seconds of life after taking its partitions up.
@pytest.mark.parametrize("lives", [[2.0], pytest.param([2.0, 3.0, 1.0, 4.0], marks=pytest.mark.deep)], ids=["once", "again and again"])
def test_redis_equals_the_pure_reducers_over_the_log_although_the_worker_is_killed(
    traffic, features, redis_url, fresh_broker, lives
) -> None:
    processes = [features()]
    lives = list(lives)
    num_lives = len(lives)
    born = 0.0

    def die(elapsed: float) -> None:
        nonlocal born
        if not lives:
            return
        if not processes[-1].has_said("taken up", count=PARTITIONS):
            born = elapsed
        elif elapsed - born >= lives[0]:
            lives.pop(0)
            processes[-1].kill()
            processes.append(features(wait=False))
        if traffic.feedback and traffic.random.random() < 0.02:
            again = traffic.random.choice(traffic.feedback[-200:])  # a sender that repeats itself
            traffic.send("feedback.v1", again.user_id, again.SerializeToString())

    traffic.run(seconds(120), per_second=60, tick=die, until=lambda: not lives and processes[-1].has_said("taken up", count=PARTITIONS))
    # The last act of each partition is no repetition, so that its offset shows when all is applied.
    for user in range(50):
        traffic.answer(traffic.expose(user_id=f"u{user}"))
    traffic.producer.flush()
    wait_until_applied(redis_url, fresh_broker.bootstrap, processes[-1])
    assert len(processes) == num_lives + 1
    found, wanted = state_in_redis(redis_url), expected_state(fresh_broker.bootstrap)
    assert set(found) == set(wanted)
    assert [key for key in wanted if found[key] != wanted[key]] == []
    assert len({feedback.feedback_id for feedback in traffic.feedback}) == sum(
        GlobalState.from_bytes(found[global_key(str(partition))]).tally[0] for partition in range(PARTITIONS)
    )


def test_unusable_feedback_changes_nothing_and_holds_nothing_up(traffic, features, redis_url, fresh_broker) -> None:
    process = features()
    exposure = traffic.expose()
    traffic.send("feedback.v1", exposure.user_id, b"\xff\xff")
    traffic.answer(exposure, kind="sneeze")
    traffic.demonstrate(exposure.user_id)
    traffic.answer(exposure, value=float("inf"))
    for user in range(50):
        traffic.answer(traffic.expose(user_id=f"u{user}"))
    traffic.producer.flush()
    wait_until_applied(redis_url, fresh_broker.bootstrap, process)
    with Redis.from_url(redis_url) as redis:
        states = [GlobalState.from_bytes(redis.get(global_key(str(partition)))) for partition in range(PARTITIONS)]
    assert sum(state.tally[0] for state in states) == 50
    assert process.stop() == 0


def test_states_that_are_ahead_of_the_log_are_refused(traffic, env, redis_url, tmp_path) -> None:
    with Redis.from_url(redis_url) as redis:
        redis.set(global_key("1"), GlobalState(partitions=PARTITIONS, last_offset=10**6).to_bytes())
    process = Process("streams.features", tmp_path / "features.log", env)
    assert process.wait() == 2
    (line,) = [line for line in process.log.read_text().splitlines() if "configuration error" in line]
    assert "feedback.v1[1], which ends at 0" in line and "empty that Redis" in line
    assert "Traceback" not in process.log.read_text()
