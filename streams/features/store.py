"""The feature states in Redis. Every batch of changes is one transaction, so a reader and a restart see all of it or nothing.

Beside the keys of services.common.ranker.feature_records there are two that only the writer reads, to take up where it ended:
`tm:popc:{partition}` (hash: item id to decayed count, clock and half-life) and `tm:fid:{partition}` (sorted set: latest feedback ids by
offset).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from services.common.platform.errors import Unavailable
from services.common.ranker.feature_records import global_key, item_key, neighbours_key, popular_key, seen_key, user_key
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.recall_state import MAX_POPULAR, Popularity, pack_decayed, pack_popular
from services.common.ranker.state_reader import StateReader
from services.common.ranker.states import GlobalState
from streams.features.core import MAX_RECENT_IDS, Changes, FeaturePartition, rebuilt_global


def popularity_counts_key(partition: int) -> str:
    """Redis key of the popularity counts of all items of a partition."""
    return f"tm:popc:{partition}"


def recent_ids_key(partition: int) -> str:
    """Redis key of the latest feedback ids of a partition."""
    return f"tm:fid:{partition}"


class FeatureStore:
    """Loads and saves the states of partitions. Raises Unavailable when Redis does not answer; what cannot be read counts as absent."""

    def __init__(self, url: str, spec: FeatureSpec, num_partitions: int) -> None:
        """Nothing is connected before the first call.

        Raises:
            ValueError: the URL is malformed.
        """
        self._redis = Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=5.0)
        self._spec = spec
        self._reader = StateReader(spec)
        self._num_partitions = num_partitions

    @property
    def num_unreadable(self) -> int:
        """Values that could not be read and counted as absent, so far."""
        return self._reader.num_unreadable

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def ping(self) -> None:
        """Raise Unavailable unless Redis answers."""
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    async def open(self, partition: int) -> FeaturePartition:
        """Return the reducer of a partition as the last written batch left it."""
        try:
            raw = await self._redis.get(global_key(str(partition)))
            counts = await self._redis.hgetall(popularity_counts_key(partition))
            recent = await self._redis.zrange(recent_ids_key(partition), 0, -1, withscores=True)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error
        ids = [(name.decode("utf-8", "replace"), int(offset)) for name, offset in recent]
        counted = self._counts_of(partition, counts)
        state = self._reader.whole(global_key(str(partition)), raw)
        if state is None:
            state = GlobalState(partitions=self._num_partitions) if raw is None else rebuilt_global(self._num_partitions, ids, counted)
        popularity = Popularity(self._spec.counters.half_lives_events[0], counted)
        return FeaturePartition(self._spec, state, popularity, ids)

    def _counts_of(self, partition: int, packed: Mapping[bytes, bytes]) -> dict[str, tuple[float, float]]:
        counted = {}
        for raw, value in packed.items():
            item_id = raw.decode("utf-8", "replace")
            count = self._reader.decayed(f"{popularity_counts_key(partition)} {item_id}", value)
            if count is not None:
                counted[item_id] = count
        return counted

    async def load(self, partition: int, reducer: FeaturePartition, user_ids: Iterable[str], item_ids: Iterable[str]) -> None:
        """Bring the states that acts of these users on these items need into the reducer's cache."""
        cache = reducer.cache
        users = [user_id for user_id in dict.fromkeys(user_ids) if user_id not in cache.users]
        items = [item_id for item_id in dict.fromkeys(item_ids) if item_id not in cache.items]
        name = str(partition)
        keys = [*map(user_key, users), *(item_key(item_id, name) for item_id in items)]
        found = dict(zip(keys, await self._mget(keys), strict=True))
        for user_id in users:
            user = self._reader.user(user_key(user_id), found[user_key(user_id)])
            if user is not None:
                cache.users[user_id] = user
        for item_id in items:
            item = self._reader.item(item_key(item_id, name), found[item_key(item_id, name)])
            if item is not None:
                cache.items[item_id] = item
        near = {*item_ids, *reducer.items_near(user_ids)}
        missing = sorted(item_id for item_id in near if item_id not in cache.neighbours)
        lists = await self._mget([neighbours_key(item_id, name) for item_id in missing])
        for item_id, value in zip(missing, lists, strict=True):
            neighbours = self._reader.neighbours(neighbours_key(item_id, name), value)
            if neighbours is not None:
                cache.neighbours[item_id] = neighbours

    async def save(self, partition: int, reducer: FeaturePartition, changes: Changes) -> None:
        """Write the changes of one batch as one transaction; repeating it with the same arguments does no harm."""
        name = str(partition)
        cache, popularity = reducer.cache, reducer.popularity
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                values: dict[str, bytes] = {user_key(user_id): cache.users[user_id].to_bytes() for user_id in changes.users}
                values |= {item_key(item_id, name): cache.items[item_id].to_bytes(self._spec) for item_id in changes.items}
                values |= {neighbours_key(item_id, name): cache.neighbours[item_id].to_bytes() for item_id in changes.neighbours}
                values[global_key(name)] = reducer.global_state.to_bytes()
                top = popularity.top(reducer.global_state.clock, MAX_POPULAR)
                values[popular_key(name)] = pack_popular(popularity.half_life_events, top)
                pipe.mset(values)
                pipe.hset(
                    popularity_counts_key(partition),
                    mapping={item_id: pack_decayed(*popularity.counts[item_id], popularity.half_life_events) for item_id in changes.items},
                )
                _add_members(pipe, {seen_key(user_id): sorted(item_ids) for user_id, item_ids in changes.seen.items()})
                pipe.zadd(recent_ids_key(partition), dict(changes.recent_ids))
                pipe.zremrangebyrank(recent_ids_key(partition), 0, -MAX_RECENT_IDS - 1)
                await pipe.execute()
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    async def _mget(self, keys: Sequence[str]) -> list[bytes | None]:
        if not keys:
            return []
        try:
            values: list[bytes | None] = await self._redis.mget(keys)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error
        return values

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(f"Redis (REDIS_URL) does not answer: {error}")


def _add_members(pipe: Pipeline, members: Mapping[str, Sequence[str]]) -> None:
    for key, values in members.items():
        pipe.sadd(key, *values)
