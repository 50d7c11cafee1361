"""What is written in place of a record that the broker will never take (larger than its topic allows, say): its dead letter. Pure."""

from __future__ import annotations

import hashlib

from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.content import header
from services.common.events.dead_letter_reasons import UNDELIVERABLE
from services.common.events.dead_letters import dead_letter, dead_letter_headers, without_content
from services.common.events.topics import BY_DLQ, WITH_DLQ
from services.common.platform.kafka_async import Record, Refusal

_DLQ_OF = {topic.name: topic.dlq for topic in WITH_DLQ}


def in_place_of(refusal: Refusal) -> Record | None:
    """Return the dead letter of a refused record; of a refused dead letter the same without its content; None where nothing is left to try.

    A record that never was in its topic has no place there: the letter says partition -1, and as offset a number made from the value.
    """
    record = refusal.record
    source = header(record.headers, "ce_source") or "/tunemesh"
    if record.topic in BY_DLQ:
        shorter = without_content(DeadLetter.FromString(record.value), refusal.cause)
        return None if shorter is None else _record(record.topic, record.key, shorter, source)
    if record.topic not in _DLQ_OF:
        return None
    letter = dead_letter(
        topic=record.topic,
        partition=-1,
        offset=int.from_bytes(hashlib.blake2b(record.value, digest_size=8).digest(), "little") >> 1,
        reason=UNDELIVERABLE,
        detail=refusal.cause,
        key=record.key,
        value=record.value,
        headers=record.headers,
    )
    return _record(_DLQ_OF[record.topic], record.key, letter, source)


def _record(topic: str, key: bytes, letter: DeadLetter, source: str) -> Record:
    return Record(topic, key, letter.SerializeToString(), dead_letter_headers(letter, source))
