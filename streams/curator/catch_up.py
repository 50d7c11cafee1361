"""Brings a partition's store of answers up to where the curator takes the log up: after a move to another host, or a lost file."""

from __future__ import annotations

import logging
from typing import Any

from services.common.events.envelope import MalformedRecord
from services.common.events.topics import GENERATIONS
from services.common.events.wire.generation import parse_generation
from streams.curator.answer_store import AnswerStore
from streams.curator.codec import read_generation
from streams.logs import LogReader
from streams.partitioned.records import Record

_log = logging.getLogger(__name__)


async def catch_up(store: AnswerStore, reader: LogReader, partition: int, end: int, *, window_ms: int, now_ms: int) -> int:
    """Copy the answers below `end` that the store lacks and that may still get feedback; return how many.

    A store that is of another log (it is ahead of this one, or its newest answer stands at another offset here) is emptied first.

    Args:
        store: of the partition.
        reader: of the broker's logs.
        partition: its number in generations.v1.
        end: the offset at which the curator takes the partition up.
        window_ms: for so long after its end an answer takes feedback.
        now_ms: wall clock, Unix milliseconds.
    Raises:
        Unavailable: the broker or the store does not answer.
    """
    topic = GENERATIONS.name
    if store.next_offset > await reader.last_end(topic, partition) or not await _stands_in_log(store, reader, partition):
        _log.warning("the answers of partition %d are of another log than this broker's: they are read again", partition)
        store.clear()
    start = max(store.next_offset, await reader.offset_at(topic, partition, now_ms - window_ms))
    num_copied = 0

    def take(message: Any) -> None:
        nonlocal num_copied
        record = Record(topic, partition, message.offset, message.key, message.value, tuple(message.headers or ()))
        try:
            generation = read_generation(record, now_ms)
        except MalformedRecord:
            return  # it is in the dead letters since it was first read
        if generation.finished_at_ms + window_ms >= now_ms and store.offset_of(generation.request_id) is None:
            store.put(generation, record)
            num_copied += 1

    if start < end:
        await reader.read_between(topic, partition, start, end, take)
        store.flush(end)
        _log.info("%d answers of partition %d were read again, from offset %d to %d", num_copied, partition, start, end)
    return num_copied


async def _stands_in_log(store: AnswerStore, reader: LogReader, partition: int) -> bool:
    """Whether the store's newest answer stands in the log where the store has it; True when the log does not reach back so far."""
    newest = store.newest()
    if newest is None:
        return True
    offset, request_id = newest
    found: list[str] = []

    def take(message: Any) -> None:
        try:
            found.append(parse_generation(message.value, message.headers).request_id)
        except MalformedRecord:
            found.append("")

    await reader.read_between(GENERATIONS.name, partition, offset, offset + 1, take)
    return not found or found[0] == request_id
