"""Which codec the batches have that a test reads."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from services.common.platform import kafka as kafka_reader
from services.common.platform.kafka_batches import CODECS


@pytest.fixture
def codecs_read(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """By topic, the codecs of the batches that kafka-python consumers of the mesh have read, by the attributes that the broker sent."""
    found: dict[str, set[str]] = defaultdict(set)

    class Noted(kafka_reader.ReadableBatches):
        def next_batch(self) -> Any:
            batch = super().next_batch()
            if batch is not None:
                found[self._topic].add(CODECS.get(batch.attributes & 0x07, "none"))
            return batch

    monkeypatch.setattr(kafka_reader, "ReadableBatches", Noted)
    return found
