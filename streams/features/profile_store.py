"""Profiles in Redis, one key a user, and up to where profiles.v1 is in them. Both are written as one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError, WatchError

from services.common.platform.errors import Unavailable
from services.common.ranker.feature_records import profile_key


def position_key(partition: int) -> str:
    """Redis key of the position in a partition of profiles.v1."""
    return f"tm:pp:{partition}"


class Position(NamedTuple):
    """Up to where a partition is in Redis."""

    log: int
    """Which log it is of, as `streams.logs.LogReader.incarnation` names it; 0: not known."""
    offset: int
    """Of the first record that is not."""

    def to_bytes(self) -> bytes:
        """Return it as Redis holds it."""
        return f"{self.log} {self.offset}".encode()

    @classmethod
    def from_bytes(cls, raw: bytes | None) -> Position | None:
        """Invert `to_bytes`; None where there is none, or something else: the topic is then read from its beginning."""
        try:
            log, offset = map(int, (raw or b"").split())
        except ValueError:
            return None
        return cls(log, offset)


class ProfileStore:
    """Raises Unavailable when Redis does not answer."""

    def __init__(self, url: str) -> None:
        """Nothing is connected before the first call.

        Raises:
            ValueError: the URL is malformed.
        """
        self._redis = Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=5.0)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def position(self, partition: int) -> Position | None:
        """Return up to where a partition is in Redis; None: nothing of it is."""
        try:
            return Position.from_bytes(await self._redis.get(position_key(partition)))
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def save(self, partition: int, values: Mapping[str, bytes | None], before: Position | None, after: Position) -> bool:
        """Write what the records between two positions say, and the second one; False, changing nothing, where Redis is not at the first.

        Args:
            partition: of profiles.v1.
            values: packed profile by user id; None: it is deleted.
            before: the position at which Redis is believed to be. Another one says that somebody else wrote, or emptied Redis.
            after: the position behind the last of the records.
        """
        key = position_key(partition)
        written = {profile_key(user_id): value for user_id, value in values.items() if value is not None}
        deleted = [profile_key(user_id) for user_id, value in values.items() if value is None]
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(key)
                if Position.from_bytes(await pipe.get(key)) != before:
                    return False
                pipe.multi()
                if written:
                    pipe.mset(written)
                if deleted:
                    pipe.delete(*deleted)
                pipe.set(key, after.to_bytes())
                await pipe.execute()
        except WatchError:
            return False
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        return True


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(f"Redis (REDIS_URL) does not answer: {error}")
