"""aiokafka's consumers, Faust's among them, read batches through `ReadableBatches`."""

from __future__ import annotations

from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.errors import UnsupportedCodecError

from services.common.platform.kafka_batches import AIOKAFKA_PACKAGES, Decoding, ReadableBatches

_DECODING = Decoding("aiokafka", AIOKAFKA_PACKAGES, UnsupportedCodecError)


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc, unused-ignore] # aiokafka's types are not read
    """The records of one fetch."""

    def __init__(self, tp: Any, records: Any, *config: Any) -> None:
        super().__init__(tp, ReadableBatches(records, tp.topic, tp.partition, _DECODING), *config)


def read_through_readable_batches() -> None:
    """Let every consumer of this process do so from now on; a repetition changes nothing.

    aiokafka (0.14) takes the class from its module and has no way to give one consumer another.
    """
    fetcher.PartitionRecords = _PartitionRecords
