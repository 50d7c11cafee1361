"""What the agent of all partitions hands to each partition's worker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streams.features import app
from streams.features.settings import FeaturesSettings
from streams.strikes import Strikes
from tests.limits import seconds


async def test_a_partition_that_is_taken_away_while_a_record_waits_for_room_lets_go_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_MAX_GATHERED", 1)
    nothing: Any = None
    worker = app.PartitionWorker(0, FeaturesSettings(user_partitions=1), nothing, nothing, Strikes(None), nothing, nothing)
    await worker.take("first")
    waiting = asyncio.create_task(worker.take("second"))
    await asyncio.sleep(0)
    assert not waiting.done()
    worker.close()
    async with asyncio.timeout(seconds(20)):
        await waiting
    assert list(worker._gathered) == ["first"]
