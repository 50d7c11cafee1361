"""Batches that a Kafka client cannot decode: topic, partition, offsets, codec and cause are named, and reading goes on where it can.

Both clients (kafka-python, aiokafka) raise out of their poll when a batch is compressed with a codec whose package is not installed, or
when its content is broken, without saying where; the position stays, so a process that starts again meets the same batch. Here every batch
is read through `ReadableBatches`:

- a codec without its package, or with one that does not import (python-snappy without cramjam): the client's own error, with all that an
  operator needs. The records are sound and the next process may read them, so nothing is skipped. Nor is it when memory runs out.
- a batch whose checksum is wrong: as the clients do, an error; the next fetch may bring it whole.
- a sound checksum over content that cannot be decoded: nobody will ever read it. One stand-in record takes its place, at the batch's last
  offset. `envelope.parse_value` calls it malformed with the cause, so that it goes the way of any unusable record: to the dead letters.

Knows neither client, no topic and no message type.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CONTENT_TYPE_UNREADABLE = "application/vnd.tunemesh.unreadable"
"""Of a stand-in's value: a zero byte, so that nobody takes it for Protobuf, and the cause in plain text."""

_CODEC_MASK = 0x07
CODECS = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
"""Source: Kafka's message format, attributes of a record batch, bits 0 to 2."""

KAFKA_PYTHON_PACKAGES = {"snappy": ("snappy", "python-snappy"), "lz4": ("lz4", "lz4"), "zstd": ("zstandard", "zstandard")}
AIOKAFKA_PACKAGES = dict.fromkeys(("snappy", "lz4", "zstd"), ("cramjam", "cramjam"))
"""By codec: (module, package) that the client needs. gzip is in the standard library."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StandIn:
    """A record in place of those that a batch does not give; has what either client asks of a record."""

    offset: int
    timestamp: int
    timestamp_type: int
    value: bytes
    headers: list[tuple[str, bytes]]
    key: None = None
    checksum: None = None

    @property
    def size_in_bytes(self) -> int:
        """As of a record that was read."""
        return len(self.value)

    def validate_crc(self) -> bool:
        """As of a record that was read."""
        return True


@dataclass(frozen=True, slots=True)
class Decoding:
    """What the reading of batches needs to know of its client.

    Attributes:
        client: its name, for messages.
        packages: by codec, (module, package).
        missing_codec: the client's own error when it has no package for a codec; its callers handle that one.
    """

    client: str
    packages: Mapping[str, tuple[str, str]]
    missing_codec: type[Exception]


class ReadableBatches:
    """The batches of one fetch, in place of the client's MemoryRecords."""

    def __init__(self, batches: Any, topic: str, partition: int, decoding: Decoding) -> None:
        """`batches` are the client's."""
        self._batches, self._topic, self._partition, self._decoding = batches, topic, partition, decoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def next_batch(self) -> Any:
        """Return the next batch; None when there is no other."""
        batch = self._batches.next_batch()
        if batch is None or getattr(batch, "magic", 0) < 2 or batch.is_control_batch:
            return batch
        return _ReadableBatch(batch, self._topic, self._partition, self._decoding)


class _ReadableBatch:
    def __init__(self, batch: Any, topic: str, partition: int, decoding: Decoding) -> None:
        self._batch, self._topic, self._partition, self._decoding = batch, topic, partition, decoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        batch = self._batch
        first = batch.base_offset
        try:
            for record in batch:
                first = record.offset + 1
                yield record
        except MemoryError as error:
            error.add_note(f"while {self._where(first)} were decompressed: they may be sound, and are read again by the next process")
            raise
        except Exception as error:  # noqa: BLE001 # what codecs and parsers raise on bytes that they cannot read has no common root
            yield self._stand_in(first, error)

    def _where(self, first: int) -> str:
        return f"{self._topic}[{self._partition}] offsets {first} to {self._batch.next_offset - 1}"

    def _stand_in(self, first: int, error: Exception) -> StandIn:
        batch, decoding = self._batch, self._decoding
        last = batch.next_offset - 1
        number = batch.attributes & _CODEC_MASK
        codec = CODECS.get(number, f"codec {number}" if number else "")
        where = self._where(first)
        module, package = decoding.packages.get(codec, ("", ""))
        # The client decides by whether the import succeeded, which finding the package does not tell.
        if module and isinstance(error, (decoding.missing_codec, ImportError)):
            fault = import_fault(module) or "did not import when this process started"
            raise decoding.missing_codec(
                f"{where} are compressed with {codec}, which {decoding.client} reads with the Python package {package}; "
                f"it {fault}: install the environment's lock file again (`make setup`)"
            ) from error
        compressed = f", compressed with {codec}," if codec else ""
        cause = f"{where}{compressed} cannot be decoded: {error!r}"
        _log.error("%s; whatever was in them is lost to %s, reading goes on behind them", cause, decoding.client)
        headers = [("content-type", CONTENT_TYPE_UNREADABLE.encode())]
        return StandIn(last, batch.max_timestamp, batch.timestamp_type, b"\x00" + cause.encode(), headers)


def import_fault(module: str) -> str:
    """Return why a package cannot be imported, as the end of a sentence that begins with its name; "" when it can."""
    if importlib.util.find_spec(module) is None:
        return "is not installed"
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 # a broken package raises anything while it is imported
        return f"does not import ({error!r})"
    return ""
