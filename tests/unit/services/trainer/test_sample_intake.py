"""Reading samples.v1: records that cannot be used, however many there are, hold up nothing that stands behind them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
from tunemesh.samples.v1.sample_pb2 import SampleRecord, Tick

from services.common.events.topics import SAMPLES
from services.common.platform import telemetry
from services.trainer import sample_intake
from services.trainer.kafka_samples import RawSample
from services.trainer.merge import TickMerge, start_position
from services.trainer.sample_intake import SampleIntake
from tests.learning import SPEC


class Log:
    """Partition 0 of samples.v1, 500 records a poll; nothing while the partition is held."""

    def __init__(self, values: list[bytes]) -> None:
        self._left = deque(RawSample(0, offset, None, value, ()) for offset, value in enumerate(values))
        self._is_held = False

    def hold(self, partitions: Collection[int]) -> None:
        self._is_held = 0 in partitions

    def poll(self, _timeout_ms: int) -> list[RawSample]:
        return [] if self._is_held else [self._left.popleft() for _ in range(min(500, len(self._left)))]


class Letters:
    def __init__(self) -> None:
        self.offsets: list[int] = []

    def send(self, letter: Any) -> None:
        self.offsets.append(letter.source_offset)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("num_usable_before", [0, 1])
def test_ten_times_more_unusable_records_than_may_wait_do_not_stop_learning(num_usable_before: int) -> None:
    num_unusable = 10 * sample_intake._MAX_BUFFERED
    ticks = [SampleRecord(tick=Tick(tick=number, watermark_ms=number)).SerializeToString() for number in (1, 2)]
    log, letters = Log([*ticks[:num_usable_before], *[b"?"] * num_unusable, ticks[1]]), Letters()
    intake = SampleIntake(log, SPEC, letters, SAMPLES.name, telemetry.disabled())
    merge = TickMerge[Any](start_position([0]), batch_groups=16)
    epoch = SimpleNamespace(merge=merge, note_unusable=lambda: None)
    largest = 0
    for _ in range(num_unusable // 500 + 2):
        intake.take(epoch, 0)
        largest = max(largest, merge.buffered(0))
        assert merge.next_batch() is None
    assert merge.position.partitions[0].last_tick == 2
    assert merge.position.offsets == [num_usable_before + num_unusable + 1]
    assert len(letters.offsets) == num_unusable and largest <= 2
