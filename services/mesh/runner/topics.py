"""Creates the mesh's topics on any broker that speaks Kafka: `python -m services.mesh topics`. Knows nothing about their records."""

from __future__ import annotations

import time
from collections.abc import Mapping

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from services.common.events.topics import ALL, LLM_EXAMPLES, RANKER_DELTAS
from services.common.platform.errors import ConfigurationError, Unavailable

_TOPIC_ALREADY_EXISTS = 36
_LONG_RETENTION_MS = 14 * 24 * 3600 * 1000
_FOR_EVER = "-1"
# Curator and tuner read the whole topic when they start, and hold it in memory for that moment: about 130,000 examples.
_MAX_EXAMPLE_BYTES = 256 * 1024 * 1024
# Whole segments are deleted, and the default of a gigabyte would never fill.
_EXAMPLE_SEGMENT_BYTES = 32 * 1024 * 1024


def mesh_topic_partitions(*, user_partitions: int, shards: int = 1) -> dict[str, int]:
    """Return the partition count by name of every topic in the table, dead-letter topics included (one partition each)."""
    counts = {topic.name: topic.num_partitions(user_partitions, shards) for topic in ALL}
    return counts | {topic.dlq: 1 for topic in ALL}


def mesh_topic_configs() -> dict[str, dict[str, str]]:
    """Return the broker's configuration by name of every topic in the table.

    Deltas are kept longer than a replica may be down; examples for ever, since every tune begins anew from the base and needs them all.
    """
    configs: dict[str, dict[str, str]] = {topic.name: {"cleanup.policy": topic.cleanup} for topic in ALL}
    configs[RANKER_DELTAS.name]["retention.ms"] = str(_LONG_RETENTION_MS)
    configs[LLM_EXAMPLES.name] |= {
        "retention.ms": _FOR_EVER,
        "retention.bytes": str(_MAX_EXAMPLE_BYTES),
        "segment.bytes": str(_EXAMPLE_SEGMENT_BYTES),
    }
    return configs | {topic.dlq: {"cleanup.policy": "delete"} for topic in ALL}


def create_topics(
    bootstrap: str, partitions: Mapping[str, int], configs: Mapping[str, Mapping[str, str]] | None = None, *, replication_factor: int = 1
) -> list[str]:
    """Create the topics that do not exist yet and return once each has a leader; repeating it does nothing.

    Args:
        bootstrap: `host:port[,host:port…]` of the brokers.
        partitions: partition count by topic name.
        configs: the broker's topic configuration by topic name.
        replication_factor: copies of each partition; at most the number of brokers.
    Returns:
        the names that were new.
    Raises:
        Unavailable: no broker answers. Retrying later helps.
        ConfigurationError: a topic exists with another partition count.
    """
    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap.split(","), client_id="tunemesh-topics", request_timeout_ms=15_000)
    except KafkaError as error:
        raise Unavailable(f"no Kafka broker answers at {bootstrap} (KAFKA_BOOTSTRAP_SERVERS): {error}") from error
    try:
        wanted = {
            name: {"num_partitions": count, "replication_factor": replication_factor, "configs": dict((configs or {}).get(name, {}))}
            for name, count in partitions.items()
        }
        answer = admin.create_topics(wanted, raise_errors=False)
        for topic in answer["topics"]:
            if topic["error_code"] not in (0, _TOPIC_ALREADY_EXISTS):
                raise ConfigurationError(f"the broker at {bootstrap} refused topic {topic['name']}: {topic['error_message']}")
        _check_partitions(admin, bootstrap, partitions)
        return [topic["name"] for topic in answer["topics"] if topic["error_code"] == 0]
    except KafkaError as error:
        raise Unavailable(f"the broker at {bootstrap} did not create the topics: {error!r}") from error
    finally:
        admin.close()


def _check_partitions(admin: KafkaAdminClient, bootstrap: str, partitions: Mapping[str, int], *, timeout_s: float = 15.0) -> None:
    """Wait until the metadata shows every topic with a leader for each partition, and compare the counts."""
    deadline = time.monotonic() + timeout_s
    while True:
        described = {topic["name"]: topic["partitions"] for topic in admin.describe_topics(list(partitions))}
        led = {name for name, found in described.items() if found and all(partition["leader_id"] >= 0 for partition in found)}
        if led >= set(partitions):
            break
        if time.monotonic() > deadline:
            raise Unavailable(f"topics {sorted(set(partitions) - led)} have no leader at {bootstrap} after {timeout_s:.0f} s")
        time.sleep(0.05)
    for name, count in partitions.items():
        if len(described[name]) != count:
            raise ConfigurationError(
                f"topic {name} at {bootstrap} has {len(described[name])} partition(s), the mesh is configured for {count}: "
                "set TUNEMESH_USER_PARTITIONS to what the broker has, or use a new broker"
            )
