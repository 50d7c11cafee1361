"""Keeps two streams that are read side by side from waiting for each other for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_WAIT_S = 0.02


class ReadingOrder:
    """Whose turn it is to read, of the two streams of one worker.

    One agent reads a stream, over all of its partitions, record by record. A partition whose memory is half full holds an agent up until
    the other stream has come as far in that partition. When both agents are held up, each by a partition of its own, the records that
    either waits for stand behind the record that the other holds: one goes on then, into the other half of its partition's room.
    """

    def __init__(self) -> None:
        """Nobody waits."""
        self._num_held = 0

    async def wait(self, *, has_room: Callable[[], bool], may_read: Callable[[], bool]) -> None:
        """Return when the next record may be taken in.

        Args:
            has_room: False while what was made of earlier records cannot be written; that passes whatever the other stream does.
            may_read: False while the other stream should come first.
        """
        while not has_room() or not may_read():
            if may_read():
                await asyncio.sleep(_WAIT_S)
            elif not await self._held(may_read) and has_room():
                return

    async def _held(self, may_read: Callable[[], bool]) -> bool:
        """Wait a moment for the other stream; return False when that one waits as well."""
        self._num_held += 1
        try:
            await asyncio.sleep(_WAIT_S)
            return self._num_held < 2 or may_read()
        finally:
            self._num_held -= 1
