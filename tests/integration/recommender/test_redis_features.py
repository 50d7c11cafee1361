import asyncio
import socket

import pytest
from redis.asyncio import Redis

from services.common.ranker.feature_records import global_key, item_key, neighbours_key, popular_key, seen_key, user_key
from services.common.ranker.recall_state import pack_counts
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState, merge_globals, merge_item_bytes
from services.recommender.core import FeaturesUnavailable
from services.recommender.redis_features import RedisFeatureStore, connect
from tests.recommender_fakes import SPEC

pytestmark = pytest.mark.integration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def redis(redis_url):
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis_url, clock):
    client = Redis.from_url(redis_url, socket_timeout=2.0)
    store = RedisFeatureStore(client, SPEC, user_partitions=2, cache_ttl_s=0.5, cache_size=3, backoff_s=0.5, clock=clock)
    yield store
    await store.close()


def act(user_id: str, item_id: str, value: float = 4.0) -> Interaction:
    return Interaction(user_id, item_id, "rating", value, 0)


def item_state(item_id: str, values: list[float], clock: float = 1.0) -> ItemState:
    state = ItemState()
    for value in values:
        state.apply(SPEC, act("x", item_id, value), clock, -1)
    return state


def global_state(acts: int) -> GlobalState:
    state = GlobalState(partitions=2)
    for _ in range(acts):
        state.apply(SPEC, act("x", "y"), ["Drama"], -1)
    return state


async def test_partials_of_the_base_and_of_every_partition_are_merged(store, redis):
    partials = {"b": item_state("10", [1.0]), "0": item_state("10", [5.0, 5.0]), "1": item_state("10", [3.0])}
    totals = {partial: global_state(3) for partial in partials}
    user = UserState()
    user.apply(SPEC, act("7", "10"), ["Drama"], 4)
    for partial, state in partials.items():
        await redis.set(item_key("10", partial), state.to_bytes(SPEC))
        await redis.set(global_key(partial), totals[partial].to_bytes())
    await redis.set(user_key("7"), user.to_bytes())
    state = await store.read("7", ["unknown", "10"])
    packed = [[None, partials[partial].to_bytes(SPEC)] for partial in ("b", "0", "1")]
    expected = merge_item_bytes(SPEC, packed, list(totals.values()))
    assert state.user == user
    assert (state.items.tally_N3 == expected.tally_N3).all() and state.items.tally_N3[1, 0] == 4
    assert (state.items.decayed_NH3 == expected.decayed_NH3).all()
    assert state.total == merge_globals(totals.values())


async def test_an_empty_redis_is_a_cold_start_not_an_error(store):
    state = await store.read("7", ["10"])
    assert state.user is None and state.items.tally_N3.sum() == 0 and state.total.tally.acts == 0


async def test_items_are_kept_for_the_time_to_live_but_users_are_always_read(store, redis, clock):
    await store.read("7", ["10"])
    await redis.set(item_key("10", "0"), item_state("10", [5.0]).to_bytes(SPEC))
    user = UserState()
    user.apply(SPEC, act("7", "10"), [], 1)
    await redis.set(user_key("7"), user.to_bytes())
    clock.now = 0.4
    state = await store.read("7", ["10", "11"])
    assert state.user == user and state.items.tally_N3[0, 0] == 0
    clock.now = 0.6
    assert (await store.read("7", ["10"])).items.tally_N3[0, 0] == 1


async def test_more_items_than_the_cache_holds_are_all_answered(store, redis):
    wanted = [str(number) for number in range(10)]
    for item_id in wanted:
        await redis.set(item_key(item_id, "1"), item_state(item_id, [3.0] * (int(item_id) + 1)).to_bytes(SPEC))
    for _ in range(2):
        state = await store.read("7", wanted)
        assert state.items.tally_N3[:, 0].tolist() == list(range(1, 11))


async def test_concurrent_requests_do_not_evict_each_others_items(store, redis):
    for number in range(20):
        await redis.set(item_key(str(number), "1"), item_state(str(number), [3.0] * (number + 1)).to_bytes(SPEC))
    wanted = [[str((start + step) % 20) for step in range(5)] for start in range(20)]
    states = await asyncio.gather(*(store.read("7", item_ids) for item_ids in wanted))
    for item_ids, state in zip(wanted, states, strict=True):
        assert state.items.tally_N3[:, 0].tolist() == [int(item_id) + 1 for item_id in item_ids]


async def test_popular_items_and_neighbours_add_up_over_partials(store, redis):
    await redis.set(popular_key("b"), pack_counts([("1", 2.0), ("2", 1.5)]))
    await redis.set(popular_key("1"), pack_counts([("2", 1.0)]))
    await redis.set(neighbours_key("1", "0"), pack_counts([("5", 1.0)]))
    await redis.set(neighbours_key("1", "1"), pack_counts([("6", 2.0), ("5", 4.0)]))
    assert await store.popular(1) == [("2", 2.5)]
    assert await store.popular(9) == [("2", 2.5), ("1", 2.0)]
    assert await store.neighbours(["9", "1"]) == [("9", []), ("1", [("5", 5.0), ("6", 2.0)])]


async def test_seen_items_are_those_of_the_users_set(store, redis):
    await redis.sadd(seen_key("7"), "1", "3")
    assert await store.seen("7", ["1", "2", "3"]) == {"1", "3"}
    assert await store.seen("8", ["1"]) == frozenset()
    assert await store.seen("7", []) == frozenset()


@pytest.mark.parametrize("key", [user_key("7"), item_key("10", "0"), global_key("1"), popular_key("0"), neighbours_key("10", "1")])
async def test_a_state_that_cannot_be_read_is_absent_and_harms_no_request(store, redis, clock, key, caplog):
    await redis.set(item_key("10", "1"), item_state("10", [5.0]).to_bytes(SPEC))
    await redis.set(key, b"not a state")
    for _ in range(3):
        state = await store.read("7", ["10"])
        assert state.user is None and state.items.tally_N3[0, 0] == 1
        assert await store.user("7") is None and await store.popular(3) == [] and await store.neighbours(["10"]) == [("10", [])]
        clock.now += 0.6
    assert sum(f"{key} in Redis cannot be read" in record.message for record in caplog.records) == 1


async def test_a_dead_redis_is_left_alone_for_a_while_and_used_again_afterwards(clock):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    client = Redis.from_url(f"redis://127.0.0.1:{port}/0", socket_timeout=0.2, socket_connect_timeout=0.2)
    store = RedisFeatureStore(client, SPEC, user_partitions=2, cache_ttl_s=0.5, cache_size=3, backoff_s=0.5, clock=clock)
    with pytest.raises(FeaturesUnavailable):
        await store.read("7", ["10"])
    connections = 0

    async def answer_once(reader, writer):
        nonlocal connections
        connections += 1
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer_once, "127.0.0.1", port)
    async with server:
        with pytest.raises(FeaturesUnavailable, match="not asked again yet"):
            await store.read("7", ["10"])
        assert connections == 0
        clock.now = 0.6
        with pytest.raises(FeaturesUnavailable):
            await store.read("7", ["10"])
        assert connections > 0
    await store.close()


async def test_a_redis_that_hangs_counts_as_failed_within_its_time(clock):
    closed, connections = asyncio.Event(), 0

    async def hang(reader, writer):
        nonlocal connections
        connections += 1
        await reader.read()
        writer.close()
        await writer.wait_closed()
        closed.set()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = connect(f"redis://127.0.0.1:{port}/0", timeout_s=0.1)
        store = RedisFeatureStore(client, SPEC, user_partitions=2, cache_ttl_s=0.5, cache_size=3, backoff_s=0.5, clock=clock)
        started = asyncio.get_running_loop().time()
        with pytest.raises(FeaturesUnavailable):
            await store.read("7", ["10"])
        assert asyncio.get_running_loop().time() - started < 3
        await store.close()
        await closed.wait()
        assert connections == 1  # no second try, which would take as long again


async def test_requests_of_one_moment_are_read_by_one_command_and_each_gets_its_own(store, redis):
    users = {str(number): UserState() for number in range(5)}
    for number, (user_id, user) in enumerate(users.items()):
        user.apply(SPEC, act(user_id, f"item {number}"), ["Drama"], 4)
        await redis.set(user_key(user_id), user.to_bytes())
        await redis.set(item_key(user_id, "b"), item_state(user_id, [float(number % 5 + 1)] * (number + 1)).to_bytes(SPEC))
    commands: list[tuple[str, ...]] = []
    execute = store._client.execute_command

    async def counted(*command: str):
        commands.append(command)
        return await execute(*command)

    store._client.execute_command = counted
    states = await asyncio.gather(*(store.read(user_id, [user_id, "unknown"]) for user_id in users))
    # One command for all: of each request its user and the partials of its items stand in it once.
    [command] = commands
    assert command[0] == "MGET" and {user_key(user_id) for user_id in users} <= set(command)
    assert [command.count(item_key(user_id, "b")) for user_id in users] == [1] * len(users)
    for number, (user, state) in enumerate(zip(users.values(), states, strict=True)):
        assert state.user is not None and [entry.item_id for entry in state.user.history] == [entry.item_id for entry in user.history]
        assert state.items.tally_N3[:, 0].tolist() == [number + 1, 0]


async def test_a_failed_command_fails_for_all_that_it_was_sent_for(store):
    async def broken(*command: str):
        raise OSError("gone")

    store._client.execute_command = broken
    answers = await asyncio.gather(store.read("1", ["2"]), store.read("3", ["4"]), store.user("5"), return_exceptions=True)
    assert all(isinstance(answer, FeaturesUnavailable) for answer in answers)
