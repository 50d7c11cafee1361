"""What all of the trainer's Kafka clients share: their limits of time, the producer, and what an error of the library means.

Every consumer runs with auto_offset_reset=none. Errors of the client library become `Unavailable` (the broker does not answer) or
`HistoryLost` (it answers, but no longer has what it had).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from services.common.platform.errors import Unavailable
from services.common.platform.kafka import end_offsets
from services.common.platform.kafka_compression import Compression
from services.common.platform.kafka_producer import RenewedProducer
from services.trainer.neighbours import HistoryLost
from services.trainer.owner import ANSWER_TIMEOUT_MS, LOOK_TIMEOUT_MS

SOURCE = "/tunemesh/trainer"
CLIENT_ID = "tunemesh-trainer"
DELIVERY_TIMEOUT_MS = 10_000


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn the library's errors inside the block into `HistoryLost` and `Unavailable`; `what` was being done."""
    try:
        yield
    except OffsetOutOfRangeError as error:
        raise HistoryLost(f"{what}: an offset is out of range ({error})") from error
    except KafkaError as error:
        raise Unavailable(f"{what}: {error!r}") from error


def make_producer(bootstrap_servers: str, compression: Compression) -> RenewedProducer:
    """Return the one producer that all of the trainer's logs share; it is thread-safe, and outlives the broker's absence."""
    return RenewedProducer(
        bootstrap_servers, client_id=CLIENT_ID, delivery_timeout_ms=DELIVERY_TIMEOUT_MS, compression=compression, linger_ms=0
    )


def position_of(consumer: KafkaConsumer, partition: TopicPartition, timeout_ms: int = LOOK_TIMEOUT_MS) -> int:
    """Return the offset that the consumer reads next."""
    # Without a timeout it waits for ever for a broker that has gone down.
    return int(consumer.position(partition, timeout_ms=timeout_ms))


def ranges_of(consumer: KafkaConsumer, partitions: Sequence[TopicPartition], timeout_ms: int = ANSWER_TIMEOUT_MS) -> list[tuple[int, int]]:
    """Return [first offset, next offset) per partition."""
    first, end = consumer.beginning_offsets(list(partitions), timeout_ms=timeout_ms), end_offsets(consumer, timeout_ms)
    return [(int(first[partition]), int(end[partition])) for partition in partitions]
