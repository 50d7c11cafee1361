"""Follows one partition of profiles.v1 into Redis. Whoever has the partition of feedback.v1 has this one too, so one worker writes a user.

Redis says up to where it has the topic, so a worker takes up where the last one ended, and one that finds an empty Redis, or a log that is
another than before, reads the whole topic. Every record is a whole profile: applying one twice does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from services.common.events.content import MalformedRecord
from services.common.events.dead_letter_reasons import KILLED_WORKER, MALFORMED
from services.common.events.profile import Profile, ProfileChange
from services.common.events.topics import PROFILES
from services.common.events.wire.profile import profile_bytes, read_change
from services.common.platform.errors import Unavailable
from streams.features.profile_store import Position
from streams.logs import FOLLOWING_WAIT_MS, LogReader
from streams.strikes import Strikes

_POLL_MS = 200
_MAX_BATCH = 500
_RETRY_S = 1.0
_LOOK_AGAIN_S = 10.0

_log = logging.getLogger(__name__)


class Store(Protocol):
    """What the follower needs of `streams.features.profile_store.ProfileStore`. Both raise Unavailable."""

    async def position(self, partition: int) -> Position | None:
        """Return up to where a partition is in Redis."""

    async def save(self, partition: int, values: Mapping[str, bytes | None], before: Position | None, after: Position) -> bool:
        """Write packed profiles by user id and a position, unless Redis is at another one than `before`."""


class ProfileFollower:
    """One partition.

    Attributes:
        num_applied: records that are in Redis.
    """

    def __init__(self, partition: int, store: Store, strikes: Strikes, set_aside: Callable[[Any, str, str], Awaitable[None]]) -> None:
        """Read nothing yet.

        Args:
            partition: its number.
            store: of the profiles.
            strikes: the process's.
            set_aside: writes a record, the reason and the details to the dead letters; returns when the broker has it.
        """
        self.num_applied = 0
        self._partition, self._store, self._strikes, self._set_aside = partition, store, strikes, set_aside

    async def follow(self, reader: LogReader) -> None:
        """Keep the profiles of the partition up to date, for ever. Kafka and Redis may be down at any time."""
        said = ""
        while True:
            try:
                await self._follow(reader)
                said = ""
            except (Unavailable, KafkaError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    _log.warning("profiles of partition %d cannot be followed, trying on every %.0f s: %s", self._partition, _RETRY_S, said)
                await asyncio.sleep(_RETRY_S)

    async def _follow(self, reader: LogReader) -> None:
        """Follow until Redis is at another position than this worker has brought it to."""
        before = await self._store.position(self._partition)
        begin = await self._begin(reader, before)
        consumer, at = reader.new_consumer(fetch_wait_ms=FOLLOWING_WAIT_MS), TopicPartition(PROFILES.name, self._partition)
        try:
            await consumer.start()
            consumer.assign([at])
            consumer.seek(at, begin.offset)
            _log.info("profiles of partition %d are followed from offset %d", self._partition, begin.offset)
            look_at = time.monotonic() + _LOOK_AGAIN_S
            while True:
                records = (await consumer.getmany(at, timeout_ms=_POLL_MS, max_records=_MAX_BATCH)).get(at, ())
                if records:
                    after = Position(begin.log, records[-1].offset + 1)
                    is_ours = await self.take(records, before, after)
                    before = after
                elif time.monotonic() > look_at:
                    is_ours = await self._store.position(self._partition) == before
                    look_at = time.monotonic() + _LOOK_AGAIN_S
                else:
                    continue
                if not is_ours:
                    _log.warning(
                        "profiles of partition %d: Redis is elsewhere than it was left (emptied, or another worker)", self._partition
                    )
                    return
        finally:
            await consumer.stop()

    async def _begin(self, reader: LogReader, known: Position | None) -> Position:
        """Return where to begin: where Redis ends, or at the topic's beginning when Redis has nothing, or something of another log."""
        log = await reader.incarnation(PROFILES.name)
        beginning = await reader.beginning(PROFILES.name, self._partition)
        if known is None:
            return Position(log, beginning)
        is_other_log = 0 not in (log, known.log) and log != known.log
        if is_other_log or known.offset > await reader.last_end(PROFILES.name, self._partition):
            _log.warning(
                "profiles of partition %d: %s is another log than that of Redis, or lost its end; it is read whole. Profiles that it no "
                "longer has stay",
                self._partition,
                PROFILES.name,
            )
            return Position(log, beginning)
        return Position(log or known.log, max(beginning, known.offset))

    async def take(self, records: Sequence[Any], before: Position | None, after: Position) -> bool:
        """Bring records, in offset order, into Redis; set aside what is none. Return False where Redis is not at `before`."""
        values: dict[str, bytes | None] = {}
        for record in records:
            change = await self._change(record)
            if change is not None:
                values[change.user_id] = profile_bytes(change) if isinstance(change, Profile) else None
        is_ours = await self._store.save(self._partition, values, before, after)
        self.num_applied += len(records) if is_ours else 0
        return is_ours

    async def _change(self, record: Any) -> ProfileChange | None:
        condemned = self._strikes.condemned(record)
        if condemned:
            await self._set_aside(record, KILLED_WORKER, condemned)
            return None
        try:
            with self._strikes.on_trial([record], unless=(MalformedRecord,)), self._strikes.working_on(record, unless=(MalformedRecord,)):
                return read_change(record.key, record.value, tuple(record.headers or ()))
        except MalformedRecord as error:
            await self._set_aside(record, MALFORMED, str(error))
            return None
