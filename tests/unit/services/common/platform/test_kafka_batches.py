"""Batches as librdkafka and Java compress them, read by both clients; and what becomes of a batch that cannot be decoded."""

from __future__ import annotations

import base64
import gzip
import importlib
import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import MemoryRecords as AioMemoryRecords
from aiokafka.structs import TopicPartition as AioTopicPartition
from kafka import TopicPartition
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import calc_crc32c
from tunemesh.events.v1 import feedback_pb2

from services.common.events.envelope import MalformedRecord, parse_value
from services.common.platform.kafka import _PartitionRecords
from services.common.platform.kafka_async_batches import read_through_readable_batches

RECORDED = {
    name: base64.b64decode(raw)
    for name, raw in json.loads((Path(__file__).parents[4] / "recorded" / "kafka_batches.json").read_text(encoding="utf-8")).items()
}
CRC_AT, CRC_OF, ATTRIBUTES_AT, CONTENT_AT = 17, 21, 21, 61


def read_with_kafka_python(raw: bytes, start: int = 0) -> list[Any]:
    return _PartitionRecords(start, TopicPartition("t", 3), MemoryRecords(raw)).take()


def read_with_aiokafka(raw: bytes, start: int = 0) -> list[Any]:
    read_through_readable_batches()
    return list(fetcher.PartitionRecords(AioTopicPartition("t", 3), AioMemoryRecords(raw), None, start, None, None, True, 0))


CLIENTS = pytest.mark.parametrize("read", [read_with_kafka_python, read_with_aiokafka])


def at_offset(raw: bytes, base: int) -> bytes:
    return struct.pack(">q", base) + raw[8:]


def with_content(raw: bytes, content: bytes, codec: int) -> bytes:
    """The batch with another content, its checksum right: what a broken writer, or a broker that checks nothing, leaves in the log."""
    body = raw[CRC_OF:ATTRIBUTES_AT] + struct.pack(">h", codec) + raw[ATTRIBUTES_AT + 2 : CONTENT_AT] + content
    length = struct.pack(">i", len(body) + 9)
    return raw[:8] + length + raw[12:CRC_AT] + struct.pack(">I", calc_crc32c(body)) + body


@CLIENTS
@pytest.mark.parametrize("name", RECORDED)
def test_what_librdkafka_and_java_compress_is_read_whole(read: Any, name: str) -> None:
    records = read(RECORDED[name])
    assert [(record.offset, record.key) for record in records] == [(number, b"item-%d" % number) for number in range(5)]
    assert [record.value.strip() for record in records] == [b" ".join([b"value %d" % number] * 40) for number in range(5)]
    assert [list(record.headers) for record in records] == [[("n", b"%d" % number)] for number in range(5)]


@CLIENTS
@pytest.mark.parametrize(("codec", "named"), [(1, "gzip"), (6, "codec 6"), (7, "codec 7"), (0, "offsets 3 to 7 cannot be decoded")])
def test_a_batch_that_nobody_can_decode_becomes_one_unreadable_record_and_reading_goes_on(read: Any, codec: int, named: str) -> None:
    sound = RECORDED["librdkafka/gzip"]
    broken = at_offset(with_content(sound, b"\x13garbage, not compressed", codec), 3)
    records = read(broken + at_offset(sound, 8), start=4)
    assert [record.offset for record in records] == [7, *range(8, 13)]
    with pytest.raises(MalformedRecord, match=r"t\[3\] offsets 3 to 7") as caught:
        parse_value(records[0].value, records[0].headers, feedback_pb2.Feedback)
    assert named in str(caught.value)


@CLIENTS
def test_the_records_before_the_broken_one_are_read(read: Any) -> None:
    plain = read_plain()
    records = read(with_content(RECORDED["librdkafka/gzip"], plain[: len(plain) - 300], 0))
    assert [record.offset for record in records] == [0, 1, 2, 3, 4]
    assert records[3].key == b"item-3"
    assert records[4].key is None
    assert b"offsets 4 to 4" in records[4].value


def read_plain() -> bytes:
    return gzip.decompress(RECORDED["librdkafka/gzip"][CONTENT_AT:])


@CLIENTS
@pytest.mark.parametrize(
    ("name", "packages"), [("java/snappy", "python-snappy cramjam"), ("java/zstd", "zstandard cramjam"), ("java/lz4", "lz4 cramjam")]
)
def test_a_codec_without_its_package_is_named_with_the_offsets_and_nothing_is_skipped(
    read: Any, name: str, packages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for codec in ("snappy", "lz4", "zstd"):
        monkeypatch.setattr(f"aiokafka.codec.has_{codec}", lambda: False)
        monkeypatch.setattr(f"kafka.codec.has_{codec}", lambda: False)
    monkeypatch.setattr("aiokafka.codec.cramjam", None)
    with pytest.raises(Exception, match=r"t\[3\] offsets 0 to 4 are compressed with") as caught:
        read(RECORDED[name])
    assert type(caught.value).__name__ == "UnsupportedCodecError"
    assert name.partition("/")[2] in str(caught.value)
    assert any(f"package {package};" in str(caught.value) for package in packages.split())


@CLIENTS
@pytest.mark.parametrize("name", ["java/snappy", "java/zstd", "java/lz4"])
def test_a_codec_whose_package_is_there_and_does_not_import_is_no_broken_content(
    read: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with python-snappy, whose own dependency cramjam is missing: it is found, its import fails, and the client has no codec."""
    for codec in ("snappy", "lz4", "zstd"):
        monkeypatch.setattr(f"aiokafka.codec.has_{codec}", lambda: False)
        monkeypatch.setattr(f"kafka.codec.has_{codec}", lambda: False)

    def fails(module: str) -> None:
        raise ModuleNotFoundError(f"of {module}: No module named 'beneath'")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(Exception, match=r"t\[3\] offsets 0 to 4 .* does not import \(ModuleNotFoundError.*'beneath'") as caught:
        read(RECORDED[name])
    assert type(caught.value).__name__ == "UnsupportedCodecError"


@CLIENTS
def test_memory_that_runs_out_is_no_broken_content(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("aiokafka.record.default_records.gzip_decode", exhausted, raising=False)
    monkeypatch.setattr("kafka.record.default_records.gzip_decode", exhausted, raising=False)
    monkeypatch.setattr(gzip, "decompress", exhausted)
    monkeypatch.setattr(gzip.GzipFile, "read", exhausted)
    with pytest.raises(MemoryError) as caught:
        read(RECORDED["librdkafka/gzip"])
    assert "t[3] offsets 0 to 4" in caught.value.__notes__[0]


@CLIENTS
def test_a_batch_whose_checksum_is_wrong_is_an_error_and_not_skipped(read: Any) -> None:
    raw = bytearray(RECORDED["librdkafka/gzip"])
    raw[-1] ^= 1
    with pytest.raises(Exception, match=r"(?i)crc"):
        read(bytes(raw))
