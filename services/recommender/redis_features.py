"""Reads online features and recall lists from Redis, where the feature stream writes them.

Item states and stream-wide counters are kept for a short while, users never: a user's own act must show in the next answer.
What cannot be read counts as absent, and is told (`services.common.ranker.state_reader`): the item or user is answered as a new one,
until the stream writes it again. Knows nothing about what the states mean; `services.common.ranker.states` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import hiredis
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError
from typing_extensions import override

from services.common.events.attributes import NO_ATTRIBUTES, Attributes
from services.common.platform.merging import Merger
from services.common.ranker.feature_records import (
    global_key,
    item_keys,
    neighbours_key,
    partial_names,
    popular_key,
    profile_key,
    seen_key,
    user_key,
)
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.recall_state import Counted, add_up
from services.common.ranker.state_reader import StateReader
from services.common.ranker.states import UserState, merge_globals
from services.common.ranker.tallies import ItemMatrix
from services.recommender.core import FeatureStore, FeaturesUnavailable, OnlineState
from services.recommender.item_cache import Generation
from services.recommender.recall import popular_now

_MAX_CONNECTIONS = 64
_MAX_MERGED = 32
# Redis does nothing else while it reads the keys of a command, about a microsecond each.
_MAX_MERGED_KEYS = 4_000

_log = logging.getLogger(__name__)


class PackedConnection(Connection):  # type: ignore[misc]  # redis is not analysed, so its classes are Any
    """redis-py's asyncio connection packs commands in Python: 0.4 ms for the keys of a hundred items, of which hiredis takes 0.04."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return the command in the Redis protocol."""
        return [hiredis.pack_command(args)]


def connect(url: str, timeout_s: float) -> Redis:
    """Return a client that answers bytes and gives up on a connection or call after `timeout_s`. Raises ValueError for a malformed URL."""
    pool = BlockingConnectionPool.from_url(
        url,
        connection_class=PackedConnection,
        max_connections=_MAX_CONNECTIONS,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # A pooled connection that a restarted Redis has closed deserves a second try; a Redis that does not answer in time does not.
        retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
    )
    return Redis(connection_pool=pool)


class RedisFeatureStore(FeatureStore):
    """Meets `core.FeatureStore`. One Redis round trip per method, fewer when cached."""

    def __init__(
        self,
        client: Redis,
        spec: FeatureSpec,
        *,
        user_partitions: int,
        cache_ttl_s: float,
        cache_size: int,
        backoff_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take ownership of `client`, which must answer bytes.

        Args:
            client: with socket timeouts set.
            spec: of the states.
            user_partitions: partials per item beside the base's.
            cache_ttl_s: how long item states, global states and popular items are kept; an item is kept as long as the totals it was
                merged with, so that its counters are never older than that.
            cache_size: item states kept.
            backoff_s: how long Redis is left alone after a failure.
            clock: monotonic seconds.
        """
        self._client, self._spec, self._clock = client, spec, clock
        self._reader = StateReader(spec)
        self._partials = partial_names(user_partitions)
        self._ttl_s, self._cache_size, self._backoff_s = cache_ttl_s, cache_size, backoff_s
        self._merger: Merger[Sequence[str], list[bytes | None]] = Merger(self._mget_all, max_batch=_MAX_MERGED, max_size=_MAX_MERGED_KEYS)
        self._generation: Generation | None = None
        self._popular: tuple[float, list[Counted]] | None = None
        self._retry_at = 0.0
        self._is_down = False

    @override
    async def read(self, user_id: str, item_ids: Sequence[str], profile: Attributes = NO_ATTRIBUTES) -> OnlineState:
        now = self._clock()
        generation = self._current(now)
        keys = [user_key(user_id)] if profile else [user_key(user_id), profile_key(user_id)]
        num_of_user = len(keys)
        if generation is None:
            keys += [global_key(partial) for partial in self._partials]
        num_head = len(keys)
        stale = item_ids if generation is None else generation.missing(item_ids)
        keys += item_keys(stale, self._partials)
        values = await self._mget(keys)
        if generation is None:
            # Of the requests that find none at the same time, the first to come back begins it for all of them.
            generation = self._current(now) or self._begin(values[num_of_user:num_head], now)
        items = generation.rows(item_ids, stale, self._reader.item_bytes(keys[num_head:], values[num_head:]))
        user = self._reader.user(keys[0], values[0])
        known = profile or self._reader.profile(keys[1], values[1])
        return OnlineState(user, ItemMatrix.of_sums(items.sums_NM), items.keys_N, generation.total, known)

    @override
    async def user(self, user_id: str) -> UserState | None:
        key = user_key(user_id)
        [value] = await self._mget([key])
        return self._reader.user(key, value)

    @override
    async def popular(self, limit: int) -> Sequence[Counted]:
        now = self._clock()
        if self._popular is None or self._popular[0] <= now:
            keys = [key(partial) for key in (popular_key, global_key) for partial in self._partials]
            values = await self._mget(keys)
            self._popular = (now + self._ttl_s, self._popular_now(keys, values))
        return self._popular[1][:limit]

    @override
    async def neighbours(self, item_ids: Sequence[str]) -> Sequence[tuple[str, Sequence[Counted]]]:
        keys = [neighbours_key(item_id, partial) for item_id in item_ids for partial in self._partials]
        values = await self._mget(keys)
        width = len(self._partials)
        lists = [self._reader.counts(key, value) for key, value in zip(keys, values, strict=True)]
        parts = [lists[at : at + width] for at in range(0, len(lists), width)]
        return [(item_id, add_up(some, sum(map(len, some)))) for item_id, some in zip(item_ids, parts, strict=True)]

    @override
    async def seen(self, user_id: str, item_ids: Sequence[str]) -> frozenset[str]:
        if not item_ids:
            return frozenset()
        flags = await self._call("SMISMEMBER", seen_key(user_id), *item_ids)
        return frozenset(item_id for item_id, flag in zip(item_ids, flags, strict=True) if flag)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose(close_connection_pool=True)  # it was given a pool, which it would leave open

    def _current(self, now: float) -> Generation | None:
        return self._generation if self._generation is not None and self._generation.expires_at > now else None

    def _begin(self, values: Sequence[bytes | None], now: float) -> Generation:
        totals = [self._reader.whole(global_key(partial), value) for partial, value in zip(self._partials, values, strict=True)]
        expires_at = now + self._ttl_s
        self._generation = Generation(self._spec, totals, merge_globals(totals), expires_at=expires_at, max_items=self._cache_size)
        return self._generation

    def _popular_now(self, keys: Sequence[str], values: Sequence[bytes | None]) -> list[Counted]:
        width = len(self._partials)
        totals = [self._reader.whole(key, value) for key, value in zip(keys[width:], values[width:], strict=True)]
        clocks = [0.0 if state is None else state.clock for state in totals]
        lists = [self._reader.popular(*each) for each in zip(keys[:width], values[:width], clocks, strict=True)]
        return popular_now(lists, totals, self._spec.counters.half_lives_events[0])

    async def _mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys; requests that wait at the same moment are read by one command."""
        return await self._merger.ask(keys, size=len(keys))

    async def _mget_all(self, batch: Sequence[Sequence[str]], timeout_s: float) -> list[list[bytes | None]]:  # noqa: ARG002 - the client has one
        values = await self._call("MGET", *(batch[0] if len(batch) == 1 else chain.from_iterable(batch)))
        found, start = [], 0
        for keys in batch:
            found.append(values[start : start + len(keys)])
            start += len(keys)
        return found

    async def _call(self, *command: str) -> list[bytes | None]:
        if self._clock() < self._retry_at:
            raise FeaturesUnavailable("Redis failed a moment ago and is not asked again yet")
        try:
            answer: list[bytes | None] = await self._client.execute_command(*command)
        except (TimeoutError, RedisError, OSError) as error:
            raise self._failed(error) from error
        if self._is_down:
            self._is_down = False
            _log.info("online features are back")
        return answer

    def _failed(self, error: Exception) -> FeaturesUnavailable:
        """Return the core's error for `error`; leave Redis alone for a while, and say so once."""
        self._retry_at = self._clock() + self._backoff_s
        if not self._is_down:
            self._is_down = True
            _log.warning("online features are unavailable, answers say features_unavailable: %s: %s", type(error).__name__, error)
        return FeaturesUnavailable(f"online features: {error}")
