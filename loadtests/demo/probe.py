"""Measures event -> learned at the serving replica, not at the publisher.

A probe asks Triton to score one user with fixed features. An event counts as learned at the moment when the answer's
watermark covers the feedback's acceptance *and* the checksum of that user's row differs from the one before it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from services.common.platform.ids import entity_key

MODEL = "ranker"


@dataclass(frozen=True, slots=True)
class RowState:
    """What one replica would use for a user now."""

    watermark_ms: int
    row_crc: int
    version: str


@dataclass(slots=True)
class FreshnessLog:
    """Seconds from acceptance to learned, per probed event; `missed` were not seen within the time limit."""

    seconds: list[float] = field(default_factory=list)
    missed: int = 0


class FreshnessProbe:
    """Polls one Triton replica."""

    def __init__(self, url: str, *, item_id: str, features_block: bytes, poll_s: float = 0.1, limit_s: float = 60.0) -> None:
        """Fix the features: `features_block` is an exposure block with one row, for `item_id`."""
        self._client = triton.InferenceServerClient(url)
        self._items = np.array([entity_key(item_id)], np.int64)
        self._block = np.frombuffer(features_block, np.uint8)
        self._poll_s, self._limit_s = poll_s, limit_s
        self.log = FreshnessLog()

    async def state(self, user_id: str) -> RowState:
        """Return the replica's watermark and the checksum of the user's row. Raises InferenceServerException."""
        inputs = []
        for name, dtype, values in (
            ("USER_ID", "INT64", np.array([entity_key(user_id)], np.int64)),
            ("ITEM_IDS", "INT64", self._items),
            ("FEATURES", "UINT8", self._block),
        ):
            tensor = triton.InferInput(name, list(values.shape), dtype)
            tensor.set_data_from_numpy(values)
            inputs.append(tensor)
        answer = await self._client.infer(MODEL, inputs, client_timeout=5.0)
        epoch, _, seq_max = answer.as_numpy("VERSION")
        return RowState(int(answer.as_numpy("WATERMARK_MS")[0]), int(answer.as_numpy("USER_ROW_CRC")[0]), f"{epoch}.{seq_max}")

    async def follow(self, user_id: str, before: RowState, accepted_at_ms: int) -> None:
        """Poll until the event accepted at `accepted_at_ms` is learned; log the seconds it took."""
        deadline = time.monotonic() + self._limit_s
        while time.monotonic() < deadline:
            try:
                now = await self.state(user_id)
            except InferenceServerException:
                # The replica is down (it may have been killed): the clock goes on, that is the point.
                await asyncio.sleep(self._poll_s)
                continue
            if now.watermark_ms >= accepted_at_ms and now.row_crc != before.row_crc:
                self.log.seconds.append(time.time() - accepted_at_ms / 1e3)
                return
            await asyncio.sleep(self._poll_s)
        self.log.missed += 1

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()
